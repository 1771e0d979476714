"""`container system check`: the system's state against reality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from container.cli.durations import parse_duration
from container.cli.groups import Verb
from container.cli.output import clipped, format_option, plain, print_json, print_table
from container.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from container.audit import Finding, Report

HELP = """Compare what is on disk with what is there.

Looks at documents, images, leases, processes, mounts, control groups and sockets of the system,
whether it runs or not, and changes nothing. The exit status is 0 when all is well, and 1 when
something was found, or is left after a repair.
"""


@click.command("check", cls=Verb, help=HELP)
@click.option("--repair", is_flag=True, help="Do what each finding says would be done.")
@click.option("--deep", is_flag=True, help="Read all images and compare them with their digests.")
@click.option("--settle", metavar="DURATION", help="Tell what is wrong for as long as this; 6s.")
@format_option()
@click.pass_obj
def command(session: Session, repair: bool, deep: bool, settle: str | None, output: str) -> int:
    """Check the system."""
    seconds = None if settle is None else parse_duration(settle)
    return session.run(_check, session, repair, deep, seconds, output)


async def _check(
    session: Session, repair: bool, deep: bool, seconds: float | None, output: str
) -> int:
    from container.audit import SETTLE_SECONDS, audit

    settle = SETTLE_SECONDS if seconds is None else seconds
    report = await audit(session.paths, deep=deep, settle=settle)
    done: list[tuple[Finding, str]] = []
    if repair and report.findings:
        done = await _repair(session, report.findings)
        report = await audit(session.paths, deep=deep, settle=settle)
    if output == "json":
        print_json(
            {
                **plain(report),
                "clean": report.clean,
                "repaired": [{**plain(finding), "result": said} for finding, said in done],
            }
        )
    else:
        _show(report, done)
    return 0 if report.clean else 1


async def _repair(session: Session, findings: Sequence[Finding]) -> list[tuple[Finding, str]]:
    from container.audit import repair
    from container.ipc import ContainerError

    done: list[tuple[Finding, str]] = []
    for finding in findings:
        try:
            said = await repair(session.paths, finding)
        except ContainerError as error:
            said = f"not done: {error.message}"
        if said is not None:
            done.append((finding, said))
    return done


def _show(report: Report, done: Sequence[tuple[Finding, str]]) -> None:
    for finding, said in done:
        print(f"{finding.subject}: {said}")
    if report.findings:
        print_table(
            ("KIND", "SUBJECT", "WHAT IS WRONG", "WHAT --repair WOULD DO"),
            [
                (finding.kind.value, finding.subject, clipped(finding.what, 200), finding.remedy)
                for finding in report.findings
            ],
        )
    counts = ", ".join(f"{count} {name}" for name, count in report.looked_at.items())
    state = "the system runs" if report.running else "the system does not run"
    number = len(report.findings)
    said = "nothing is wrong" if report.clean else f"{number} finding{'s' if number > 1 else ''}"
    print(f"{said}; {state}; {counts}{'; all bytes were read' if report.deep else ''}")
