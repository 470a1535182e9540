"""The commands: parse arguments, call the library, choose the exit code; nothing else."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from acclint import Problem, __version__

if TYPE_CHECKING:
    from acclint.discover import Target
    from acclint.lint import Result
    from acclint.settings import Finder

EXIT_FINDINGS = 1
EXIT_PROBLEM = 2
EXIT_INTERRUPTED = 130


class Commands(click.Group):
    """Explains `acclint train.py`, and turns interrupts and Problems into their exit codes and one line of text."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("--"):
            if name == "-" or Path(name).exists() or re.search(r"[./\\]", name):
                _fail(f"no command {name!r}; did you mean `acclint check {' '.join(args)}`?")
            from acclint.settings import did_you_mean

            near = did_you_mean(name, self.commands) or f"; the commands are {', '.join(sorted(self.commands))}"
            _fail(f"no command {name!r}{near}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Problem as problem:
            _fail(str(problem))
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    click.echo(f"acclint: {text}", err=True)


def _fail(text: str) -> NoReturn:
    _say(f"error: {text}")
    raise click.exceptions.Exit(EXIT_PROBLEM)


def _codes(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """`--select A,B --select C` is A, B, C."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def _list(*names: str, metavar: str = "CODES", text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, multiple=True, callback=_codes, metavar=metavar, help=text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="acclint", message="%(prog)s %(version)s")
def cli() -> None:
    """Find gradient-accumulation mistakes in PyTorch training code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show ¼, or a file name that is no text, is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@cli.command()
@click.argument("paths", nargs=-1)
@_list("--select", text="Only these rules: codes, prefixes, names, categories or ALL, separated by commas.")
@_list("--ignore", text="Not these rules.")
@_list("--extend-select", text="These rules besides those selected.")
@click.option("--fix", is_flag=True, help="Rewrite what can be put right safely; each rewrite is proven first.")
@click.option(
    "--unsafe-fixes", is_flag=True, help="With --fix or --diff: also rewrites that may not be what you meant."
)
@click.option("--diff", is_flag=True, help="Show what --fix would change, and write nothing.")
@click.option(
    "--confirm",
    is_flag=True,
    help="Measure each finding with torch. THIS RUNS STATEMENTS OF THE CHECKED FILES: those of the loop, in a guarded "
    "child process; a guard against accidents, not against hostile code. Never in a hook.",
)
@click.option("--min-severity", type=click.Choice(["error", "warning", "info"]), help="Default: warning.")
@click.option("--min-confidence", type=click.Choice(["high", "medium", "low"]), help="Default: medium.")
@click.option("--output-format", type=click.Choice(["full", "concise", "json"]), default="full", show_default=True)
@click.option("--show-contributions", is_flag=True, help="Draw the contribution matrix of every loop; 1 is right.")
@click.option("--statistics", is_flag=True, help="Count the findings of each rule instead of showing them.")
@click.option("--show-files", is_flag=True, help="List the files that would be checked, and check none.")
@click.option("-q", "--quiet", is_flag=True, help="Only the findings, no summary.")
@click.option("-v", "--verbose", is_flag=True, help="Every loop not understood; tracebacks of internal errors.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@_list("--exclude", metavar="GLOBS", text="Files and folders to leave out, instead of the default and configured ones.")
@_list("--extend-exclude", metavar="GLOBS", text="Files and folders to leave out besides.")
@click.option("--force-exclude", is_flag=True, help="Leave excluded files out even if they are given by name.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 though there are findings.")
@click.option("--exit-non-zero-on-fix", is_flag=True, help="Exit with 1 if --fix changed a file.")
@click.option("--no-cache", is_flag=True, help="Run slices anew, and keep nothing.")
@click.option(
    "--cache-dir",
    type=click.Path(),
    metavar="DIR",
    help="Where --confirm keeps what it measured.  [default: .acclint_cache]",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes. Default: one per CPU.")
@click.option("--config", type=click.Path(), metavar="FILE", help="A pyproject.toml to use for all files.")
@click.option("--isolated", is_flag=True, help="Use no pyproject.toml at all.")
@click.option("--stdin-filename", type=click.Path(), metavar="PATH", help="The name of what `-` reads.")
def check(paths: tuple[str, ...], output_format: str, color: str, **options: Any) -> None:
    """Check files and folders (default: the working directory); `-` reads standard input."""
    from acclint import lint
    from acclint.discover import discover

    finder = _finder(options)
    fixes = options["fix"] or options["diff"]
    if options["unsafe_fixes"] and not fixes:
        _fail("--unsafe-fixes goes with --fix or --diff")
    if "-" in paths and len(paths) > 1:
        _fail("`-` cannot be combined with other paths")
    if options["stdin_filename"] and "-" not in paths:
        _fail("--stdin-filename names what `-` reads, but `-` is not among the paths")
    if options["confirm"]:
        _may_confirm(fixes, "-" in paths)
    if fixes and not options["show_files"]:
        _fix(paths, finder, output_format, _colours(color), options)
        return
    if "-" in paths:
        data, target = _input(options, finder)
        result = lint.collect([lint.check_bytes(data, target)] if target is not None else [])
    elif options["show_files"]:
        found = discover(paths or (".",), finder, options["force_exclude"])
        for target in found.targets:
            click.echo(target.name)
        _errors(found.errors)
        return
    else:
        jobs = options["jobs"] or _processors()
        result = lint.check(paths or (".",), finder, force_exclude=options["force_exclude"], jobs=jobs)
    if options["confirm"]:
        result = _confirm(result, options)
    _print(result, output_format, _colours(color), options)
    _end(result, options, _found(result))


def _may_confirm(fixes: bool, stdin: bool) -> None:
    from acclint.probe.confirm import refused

    if stdin:
        _fail("--confirm measures files: it does not go with `-`")
    if fixes:
        _fail("--confirm measures the files as they are: it does not go with --fix and --diff")
    if why := refused():
        _fail(why)


def _confirm(result: Result, options: dict[str, Any]) -> Result:
    """The findings with what was measured; as they are, and a line that says so, where nothing can be measured."""
    from acclint.probe import OracleError
    from acclint.probe.confirm import confirm
    from acclint.probe.kept import FOLDER

    live = sys.stderr.isatty() and not options["quiet"]
    cache = None if options["no_cache"] else options["cache_dir"] or FOLDER
    try:
        return confirm(result, _show_confirmed if live else None, cache)
    except OracleError as error:
        _say(f"warning: nothing was confirmed: {error}")
        return result
    finally:
        if live:
            click.echo("\r\x1b[K", nl=False, err=True)


def _show_confirmed(done: int, of: int) -> None:
    click.echo(f"\r\x1b[Kmeasured {done} of {of} findings", nl=False, err=True)


def _fix(
    paths: tuple[str, ...], finder: Finder, output_format: str, color: bool | None, options: dict[str, Any]
) -> None:
    """`--fix` and `--diff`. With `-`, or with --diff, the report makes way on standard output for the text."""
    from acclint import repair
    from acclint.report import fixes

    unsafe, dry = options["unsafe_fixes"], options["diff"]
    if "-" in paths:
        data, target = _input(options, finder)
        if target is None:
            sys.stdout.buffer.write(data)
            return
        repairs = repair.collect([repair.fix_bytes(data, target, unsafe)])
        if not dry:
            sys.stdout.buffer.write(repairs.repairs[0].new)
            sys.stdout.buffer.flush()
    else:
        repairs = repair.fix(
            paths or (".",),
            finder,
            unsafe=unsafe,
            dry=dry,
            force_exclude=options["force_exclude"],
            jobs=options["jobs"] or _processors(),
        )
    if dry:
        for text in fixes.diffs(repairs):
            click.echo(text, color=color)
    else:
        _print(repairs.result, output_format, color, options, err="-" in paths)
    if not options["quiet"] and (output_format != "json" or dry):
        click.echo(fixes.summary(repairs, unsafe=unsafe, dry=dry), err=dry or "-" in paths, color=color)
    changed = bool(repairs.fixed)
    _end(
        repairs.result,
        options,
        changed if dry else _found(repairs.result) or (changed and options["exit_non_zero_on_fix"]),
    )


def _end(result: Result, options: dict[str, Any], failed: bool) -> None:
    """What went wrong beside the findings, then the exit code."""
    if not result.outcomes and not result.errors:
        _say("warning: no Python files found under the given paths")
    if options["verbose"]:
        for trace in result.tracebacks:
            click.echo(trace.rstrip(), err=True)
    _errors(result.errors)
    if failed and not options["exit_zero"]:
        raise click.exceptions.Exit(EXIT_FINDINGS)


def _found(result: Result) -> bool:
    """Whether findings remain: one that a measurement refuted does not."""
    return any(finding.severity.rank > 0 and finding.verdict != "refuted" for finding in result.findings)


def _finder(options: dict[str, Any]) -> Finder:
    from acclint.findings import Confidence, Severity
    from acclint.settings import Finder, Overrides, Selection

    if options["config"] and options["isolated"]:
        _fail("--config and --isolated exclude each other")
    selection = Selection(options["select"] or None, options["extend_select"], options["ignore"])
    overrides = Overrides(
        selection=selection,
        exclude=options["exclude"] or None,
        extend_exclude=options["extend_exclude"],
        min_severity=Severity(options["min_severity"]) if options["min_severity"] else None,
        min_confidence=Confidence(options["min_confidence"]) if options["min_confidence"] else None,
    )
    return Finder(overrides, Path(options["config"]) if options["config"] else None, options["isolated"])


def _input(options: dict[str, Any], finder: Finder) -> tuple[bytes, Target | None]:
    """Standard input under the name, and with the settings, of `--stdin-filename`; no target if that is excluded."""
    from acclint.discover import Target, is_excluded, shown

    path = Path(os.path.abspath(options["stdin_filename"] or "-"))
    data = sys.stdin.buffer.read()
    if options["force_exclude"] and options["stdin_filename"] and is_excluded(path, finder):
        return data, None
    name = shown(path) if options["stdin_filename"] else "-"
    return data, Target(path, name, finder.find(path.parent))


def _print(result: Result, output_format: str, color: bool | None, options: dict[str, Any], err: bool = False) -> None:
    """Everything for standard output (or, with `err`, error output). JSON stands there alone, to be piped."""
    from acclint.report import concise, contributions, full, json, statistics, summary

    if output_format == "json":
        click.echo((statistics.render_json if options["statistics"] else json.render)(result.findings), err=err)
        return
    width = shutil.get_terminal_size((120, 24)).columns
    parts = []
    if result.findings:
        if options["statistics"]:
            parts.append(statistics.render(result.findings))
        elif output_format == "concise":
            parts.append(concise.render(result.findings))
        else:
            parts.append(full.render(result, width))
    if options["show_contributions"] and result.loops:
        parts.append(contributions.render(result.loops, width))
    if not options["quiet"] and (result.outcomes or not result.errors):
        parts.append(summary.render(result, options["verbose"]))
    if parts:
        click.echo(("\n" if output_format == "concise" else "\n\n").join(parts), err=err, color=color)


def _colours(choice: str) -> bool | None:
    """For click: True, False, or None to ask the terminal."""
    if choice == "auto":
        return False if os.environ.get("NO_COLOR") else None
    return choice == "always"


def _errors(lines: Sequence[str]) -> None:
    """One line per problem, then exit code 2; nothing without problems."""
    for line in lines:
        _say(f"error: {line}")
    if lines:
        raise click.exceptions.Exit(EXIT_PROBLEM)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cli.command()
@click.argument("script", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--entry", default="", metavar="MODULE:FUNCTION", help="Call this function instead of running SCRIPT.")
@click.option("--max-updates", type=click.IntRange(min=1), metavar="N", help="End after so many updates and an epoch.")
@click.option("--max-batches", type=click.IntRange(min=1), metavar="N", help="Exactly so many batches in an epoch.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Default: 120.")
@click.option("--allow-write", multiple=True, metavar="DIR", help="A folder that SCRIPT may really write to.")
@click.option("--python", metavar="PATH", help="The Python that has your torch. Default: the active environment's.")
@click.option("--output-format", type=click.Choice(["full", "concise", "json"]), default="full", show_default=True)
@click.option("--min-severity", type=click.Choice(["error", "warning", "info"]), help="Default: warning.")
@click.option("--min-confidence", type=click.Choice(["high", "medium", "low"]), help="Default: medium.")
@click.option("-q", "--quiet", is_flag=True, help="Only the findings, no matrix and no summary.")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--config", type=click.Path(), metavar="FILE", help="A pyproject.toml to use for all files.")
@click.option("--isolated", is_flag=True, help="Use no pyproject.toml at all.")
def probe(script: str, args: tuple[str, ...], output_format: str, color: str, **options: Any) -> None:
    """Run SCRIPT with ARGS (after `--`) under instruments, and judge each finding by what was measured.

    THIS RUNS YOUR CODE, unchanged, for a few updates, with shortened epochs. What it writes goes to a scratch folder
    that is deleted afterwards; where the kernel allows it, only the loopback network is there; time, memory and
    processes are limited. That guards against accidents such as overwritten checkpoints. It is no protection against
    hostile code: do not probe scripts that you would not run.
    """
    from acclint.probe.watch import Request, watch
    from acclint.report import probed

    keys = ("entry", "max_updates", "max_batches", "timeout", "allow_write", "python")
    request = Request(script, args, **{key: options[key] for key in keys})
    finder = _finder({**options, "select": (), "extend_select": (), "ignore": (), "exclude": (), "extend_exclude": ()})
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started; it speaks for all
    live = first and sys.stderr.isatty() and not options["quiet"]
    watched = watch(request, finder, _show_progress if live else None)
    if not first:
        return
    if live:
        click.echo("\r\x1b[K", nl=False, err=True)
    if output_format == "json":
        click.echo(probed.render_json(watched))
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        concise = output_format == "concise"
        parts = [probed.render_concise(watched) if concise else probed.render(watched, width, options["quiet"])]
        parts += [] if options["quiet"] else [probed.summary(watched)]
        click.echo("\n\n".join(part for part in parts if part), color=_colours(color))
    nothing = probed.nothing(watched)
    if nothing or watched.measured.outcome in ("crashed", "timeout"):
        _say(f"warning: {nothing or probed.ending(watched)}")
        if failure := probed.output_of_failure(watched):
            click.echo(failure, err=True)
    _errors(watched.errors)
    if any(finding.severity.rank > 0 for finding in watched.remaining):
        raise click.exceptions.Exit(EXIT_FINDINGS)
    if nothing:
        raise click.exceptions.Exit(EXIT_PROBLEM)


def _show_progress(progress: Mapping[str, float]) -> None:
    text = f"{progress['updates']:g} updates, {progress['backwards']:g} backward calls, {progress['seconds']:.0f} s"
    click.echo(f"\r\x1b[K{text}", nl=False, err=True)


@cli.command()
@click.argument("code")
def explain(code: str) -> None:
    """Show the documentation of a rule, by its code or name."""
    from acclint.rules import all_rules
    from acclint.settings import suggest_rule

    for rule in all_rules().values():
        if code.upper() == rule.code or code.lower() == rule.name:
            click.echo(f"# {rule.name} ({rule.code})\n\n{rule.documentation.strip()}")
            return
    _fail(f"unknown rule {code!r}{suggest_rule(code)}; `acclint rules` lists them")


@cli.command()
@click.option("--output-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def rules(output_format: str) -> None:
    """List the rules."""
    import json

    from acclint.rules import all_rules

    found = list(all_rules().values())
    if output_format == "json":
        keys = ("code", "name", "category", "severity", "fix", "summary", "documentation")
        click.echo(json.dumps([{key: getattr(rule, key) for key in keys} for rule in found], indent=2))
        return
    names = max((len(rule.name) for rule in found), default=0)
    for rule in found:
        click.echo(f"{rule.code}  {rule.name:<{names}}  {rule.severity.value:<7}  {rule.summary}")


@cli.command()
@click.argument("target", required=False, metavar="[MODULE:FACTORY]")
@click.option("--demo", is_flag=True, help="The founding experiments on synthetic data; takes about a minute.")
@_list("--micro-batch-sizes", metavar="SIZES", text="Default: up to six divisors of the batch size.")
@click.option(
    "--normalize",
    type=click.Choice(["auto", "mean", "samples", "none"]),
    default="auto",
    show_default=True,
    help="What your training loop does to the loss: divide it by k, weigh it by samples, or nothing.",
)
@click.option("--plot", type=click.Path(), metavar="FILE.png", help="Draw the curves too (needs acclint[plot]).")
@click.option("--output-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
def equivalence(
    target: str | None, demo: bool, plot: str | None, output_format: str, color: str, **options: Any
) -> None:
    """Is accumulation the same as the large batch for this model? (needs torch: acclint[probe])

    FACTORY is a function that returns (model, loss_fn, batch), and perhaps a fourth: parameters -> optimizer.
    loss_fn(model, batch) returns the loss. It is imported and called, so your code runs. Exit code 0: the same, 1: not
    the same.
    """
    from acclint.report import equivalence as report
    from acclint.report import plot as drawing

    if demo == bool(target):
        _fail("--demo needs no MODULE:FACTORY" if demo else "give MODULE:FACTORY, or --demo")
    sizes = _positive_integers("--micro-batch-sizes", options["micro_batch_sizes"])
    if plot:
        drawing.check(plot)
    try:
        from acclint.probe.demo import run as run_demo
        from acclint.probe.study import study
    except ImportError as error:
        raise Problem(f"acclint equivalence needs torch ({error}): pip install acclint[probe]") from None
    width = shutil.get_terminal_size((120, 24)).columns
    as_text = output_format == "text"
    if target:
        from acclint.probe.factory import load

        studied = study(load(target), sizes, options["normalize"])
        click.echo(
            (report.render_study(studied, width) if as_text else report.render_json(studied)), color=_colours(color)
        )
        same = studied.equal
        if plot:
            drawing.plot_study(studied, plot)
    else:
        experiments = []
        for experiment in run_demo():
            experiments.append(experiment)
            if as_text:
                click.echo(report.render_experiment(experiment, width) + "\n", color=_colours(color))
        click.echo(report.summary(experiments) if as_text else report.render_json(experiments))
        same = not any(experiment.failures for experiment in experiments)
        if plot:
            drawing.plot_demo(experiments, plot)
    if not same:
        raise click.exceptions.Exit(EXIT_FINDINGS)


def _positive_integers(option: str, texts: Sequence[str]) -> tuple[int, ...]:
    wrong = next((text for text in texts if not text.isascii() or not text.isdigit() or int(text) < 1), None)
    if wrong is not None:
        _fail(f"{option}: {wrong!r} is not a positive integer")
    return tuple(int(text) for text in texts)
