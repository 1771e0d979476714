"""The API server: containers, plugins and health, one actor each.

It owns the documents of all containers and starts one runtime helper per container; it never
touches a container's processes, mounts or control groups itself, so it can be killed at any moment
and the next one adopts what runs. `Networks` and `Volumes` are planned as two further actors beside
`ContainersService`: each will own its documents and be a constructor argument of the containers.

- `containers`: the actor behind the `Containers` contract. It stands on `adoption` (what an earlier
  API server left), that on `running` (a container's runs, one after the other), that on `table`
  (what exists).
- `restarts`, `healthchecks`, `events`: the rules of restart policies, the checks of one run, and
  what is told to subscribers.
- `names`, `configuration`, `store`: what a name may be, what a container is made from, where it is
  kept.
- `sandboxes`, `runs`: the connection to each runtime helper, and one run from bootstrap to
  clean-up.
- `plugins`, `health`: the two other contracts.
- `links`: connections to the launcher and the images helper that survive their restart.
"""

from __future__ import annotations
