"""`tosa push`."""

from pathlib import Path
from typing import Annotated

import typer

from tosa_cli.cli import console
from tosa_cli.cli.options import JsonOption, resolve_model
from tosa_cli.errors import InputError


def push(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] REPO_ID",
            help="The model folder (default: the last one converted here), and where it goes: org/name.",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Make a new repository private or public.", show_default=False),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of pushing.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a model card that tosa did not write.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, with sizes.")] = False,
    json: JsonOption = False,
) -> None:
    """Push a model folder to the Hugging Face Hub, in one commit."""
    if len(names) > 2:
        raise InputError(f"Too many names: pass a model folder and a repository, not {' '.join(names)}.")
    repo_id = names[-1]
    folder = resolve_model(names[0] if len(names) == 2 else None)

    from tosa_cli.hub.push import plan_push, push_folder

    plan = plan_push(Path(folder))
    if dry_run:
        if json:
            console.print_json(
                {
                    "repo_id": repo_id,
                    "total_bytes": plan.total_bytes,
                    "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in plan.files],
                }
            )
            return
        console.print_table(
            f"{folder} would go to {repo_id}",
            ["file", "bytes"],
            [[file.name, f"{file.size_bytes:,}"] for file in plan.files],
        )
        console.say(f"Dry run: nothing was pushed ({plan.total_bytes / 1e6:.1f} MB).")
        return
    report = push_folder(
        plan,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        overwrite_card=overwrite_card,
    )
    if json:
        console.print_json(
            {
                "repo_url": report.repo_url,
                "commit_url": report.commit_url,
                "pr_url": report.pr_url,
                "oid": report.oid,
                "changed": report.changed,
            }
        )
        return
    if not report.changed:
        console.say(f"{repo_id} already holds these files: nothing was pushed.")
    console.print_line(report.pr_url or report.commit_url)
    console.next_command(f"python -c \"import tosa_cli; tosa_cli.load('{repo_id}')\"")
