"""The process `container-images`: serve `Images` on the socket that the launcher hands over."""

from __future__ import annotations

import trio

from container.process import Context, run_process


async def serve(context: Context) -> None:
    """Serve the images of the context's root until cancelled."""
    from container.images.service import ImagesService
    from container.ipc import open_service
    from container.storage.settings import Settings

    settings = await trio.to_thread.run_sync(Settings.read)
    service = ImagesService(context.paths.images, settings)
    at = context.listener or context.paths.images_socket
    async with open_service(service, at=at, idle=context.idle):
        await context.ready()
        await trio.sleep_forever()


def main() -> int:
    """Run the process."""
    return run_process("container-images", serve)
