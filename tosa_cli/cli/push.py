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
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            help="Photo on which the card shows what the model computes; may be given again.",
            show_default=False,
        ),
    ] = None,
    overwrite_card: Annotated[
        bool | None,
        typer.Option(
            "--overwrite-card/--keep-card",
            "--yes",
            "-y",
            help="Replace another model card that the repository has, or keep it. [default: ask, and keep it where "
            "there is no terminal]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, with sizes.")] = False,
    json: JsonOption = False,
) -> None:
    """Push a model folder to the Hugging Face Hub, in one commit."""
    if len(names) > 2:
        raise InputError(f"Too many names: pass a model folder and a repository, not {' '.join(names)}.")
    repo_id = names[-1]
    folder = resolve_model(names[0] if len(names) == 2 else None)

    from tosa_cli.workflow.push import plan as plan_files
    from tosa_cli.workflow.push import push

    if dry_run:
        plan = plan_files(folder, repo_id, images or ())
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
    report = push(
        folder,
        repo_id,
        images=images or (),
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        overwrite_card=_may_overwrite if overwrite_card is None else overwrite_card,
    )
    if report.card_kept:
        console.warn(
            f"{repo_id} keeps the model card that it has, and the new one was not pushed: pass --overwrite-card to "
            f"replace it."
        )
    if json:
        console.print_json(
            {
                "repo_url": report.repo_url,
                "commit_url": report.commit_url,
                "pr_url": report.pr_url,
                "oid": report.oid,
                "changed": report.changed,
                "card_kept": report.card_kept,
            }
        )
        return
    if not report.changed:
        console.say(f"{repo_id} already holds these files: nothing was pushed.")
    console.print_line(report.pr_url or report.commit_url)
    console.next_command("python", "-c", f'import tosa_cli; tosa_cli.load("{repo_id}")')


def _may_overwrite(repo_id: str) -> bool:
    return console.can_ask() and console.ask(f"{repo_id} already has another model card. Replace it?")
