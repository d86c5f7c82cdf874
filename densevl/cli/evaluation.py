"""The `densevl eval` commands, thin: benchmarks checked, run, compared, analysed. Torch is imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from densevl.cli.shared import one_line_errors, stdout

eval_app = typer.Typer(no_args_is_help=True, help="Benchmarks: check, run, compare recipes, analyse a model.")

Root = Annotated[Path | None, typer.Option(help="Its folder; else $DENSEVL_DATA, ./data and the cache are searched.")]
Model = Annotated[str, typer.Option(help="As `densevl models` lists them.")]
Recipe = Annotated[str | None, typer.Option(help="As `densevl recipes` lists them; the model's own if left out.")]
Out = Annotated[Path, typer.Option(help="Gets the report, and the state for going on after a kill.")]
Limit = Annotated[int | None, typer.Option(help="So many images, spread over the dataset.")]
Background = Annotated[str, typer.Option(help="When a pixel is background, such as 'voc, 0.1'.")]
TaskName = Annotated[str | None, typer.Option(help="semantic, instance or panoptic.")]
Proposed = Annotated[str, typer.Option(help="What finds regions: mini-sam, sam, ...; truth: the true masks.")]
Operator = Annotated[str | None, typer.Option(help="How regions are embedded, as in `densevl regions`.")]
Measures = Annotated[str, typer.Option(help="Of iou, boundary, calibration; commas between.")]
OUT = Path("densevl-out/eval")


@eval_app.command("list")
@one_line_errors
def list_datasets() -> None:
    """List the benchmarks there are readers for, with their tasks and files."""
    from densevl.evaluation.benchmarks.check import files_of, known

    for name, tasks in known().items():
        for task in tasks:
            stdout().print(f"{name} ({task}): {escape('; '.join(files_of(name, task)))}")


@eval_app.command()
@one_line_errors
def check(dataset: str, root: Root = None, task: TaskName = None) -> None:
    """Say what of a dataset is missing and where it was looked for; exit code 1 if it is not ready."""
    from densevl.evaluation import check as look

    found = look(dataset, root, task=task)
    stdout().print(escape(str(found)))
    if found.faults:
        raise typer.Exit(1)


@eval_app.command()
@one_line_errors
def run(
    dataset: str,
    root: Root = None,
    model: Model = "auto",
    recipe: Recipe = None,
    paper: Annotated[bool, typer.Option(help="The protocol of the recipe's paper for this benchmark.")] = False,
    out: Out = OUT,
    limit: Limit = None,
    background: Background = "auto",
    strings: Annotated[str, typer.Option(help="The strings of the class list: names, sclip@1, proxyclip@1.")] = "names",
    variant: Annotated[str, typer.Option(help="Another label rule: mmseg-default255, keep-ignore.")] = "",
    measures: Measures = "iou,calibration",
    task: TaskName = "semantic",
    proposals: Annotated[
        str, typer.Option(help="What finds regions: mini-sam, sam, ...; truth: true masks.")
    ] = "mini-sam",
    operator: Annotated[str | None, typer.Option(help="How regions are embedded, as in `densevl regions`.")] = None,
    proxy: str | None = None,
    sam: str | None = None,
    regions: str | None = None,
    views: str | None = None,
    precision: Annotated[str | None, typer.Option(help="float32, int8 or bfloat16, of the image tower.")] = None,
    refine: str | None = None,
    compat: Annotated[bool | None, typer.Option(help="The authors' slips included; --paper includes them.")] = None,
    proxy_scope: Annotated[
        str | None, typer.Option(help="The proxy looks at the image once, or at each window: image, window.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Forget what earlier runs counted.")] = False,
    dump: Annotated[bool, typer.Option(help="Keep every prediction as a 16-bit PNG.")] = False,
) -> None:
    """Evaluate a model on a benchmark and write a report."""
    from densevl.evaluation.evaluate import evaluate

    given: dict[str, Any] = {"strings": strings, "background": background, "variant": variant, "paper": paper}
    given |= {"task": task or "semantic", "proposals": proposals, "operator": operator}
    parts: dict[str, Any] = {
        "proxy": proxy,
        "sam": sam,
        "regions": regions,
        "views": views,
        "refine": refine,
        "precision": precision,
    }
    parts |= {"compat": compat, "proxy_scope": proxy_scope}
    experiment = _experiment(dataset, root, model, recipe, limit, measures, **given, **parts)
    outcome, files = evaluate(experiment, out, fresh=fresh, dump=dump)
    stdout().print(f"{outcome.headline}, report in {escape(str(files[0]))}")


@eval_app.command()
@one_line_errors
def compare(
    dataset: str,
    recipes: Annotated[str, typer.Option(help="Names with commas between.")],
    root: Root = None,
    model: Model = "auto",
    out: Out = OUT,
    limit: Limit = None,
    background: Background = "auto",
    measures: Measures = "iou,calibration",
) -> None:
    """Evaluate several recipes and write their table."""
    from densevl.evaluation.compare import compare as evaluate_all

    experiment = _experiment(dataset, root, model, None, limit, measures, background=background)
    _, path = evaluate_all(experiment, [name.strip() for name in recipes.split(",")], out)
    stdout().print(escape(path.read_text(encoding="utf-8")))


@eval_app.command()
@one_line_errors
def analyse(
    dataset: str,
    root: Root = None,
    model: Model = "auto",
    recipe: Recipe = None,
    out: Out = OUT,
    limit: Limit = 50,
    distractors: Annotated[str, typer.Option(help="Labels to add, or a .txt file; ADE20K's if left out.")] = "",
    only: Annotated[str, typer.Option(help="Which, commas between.")] = "vocabulary,background,corruption",
) -> None:
    """What a score hides: more labels, other backgrounds, worse photos."""
    from densevl.evaluation import analyses
    from densevl.evaluation.benchmarks.class_lists import class_list
    from densevl.evaluation.report import analyses as analysis_report
    from densevl.vocabulary import LabelSet

    experiment = _experiment(dataset, root, model, recipe, limit, "iou")
    data = experiment.open()
    predictor = experiment.predictor(data)
    words = LabelSet.parse(distractors).names if distractors else class_list("ade150").names
    wanted = [name.strip() for name in only.split(",")]
    found = []
    if "vocabulary" in wanted:
        found.append(analyses.vocabulary_expansion(predictor, data, words))
    if "background" in wanted and data.classes.background:
        found.append(analyses.background_reliance(predictor, data))
    if "corruption" in wanted:
        found.append(analyses.corruption_robustness(predictor, data))
    files = analysis_report.write(found, out, f"Analyses of {predictor.segmenter.backbone.name} on {dataset}")
    stdout().print(f"report in {escape(str(files[0]))}")


@eval_app.command()
@one_line_errors
def anomaly(
    dataset: Annotated[str, typer.Argument(help="mvtec (any folder in that layout), visa, mtd, ksdd2.")],
    root: Annotated[Path, typer.Option(help="Its folder.")],
    model: Model = "auto",
    scoring: str = "winclip",
    shots: Annotated[int, typer.Option(help="Flawless training images to learn from, the first by name.")] = 0,
    out: Out = OUT,
) -> None:
    """Evaluate anomaly detection on every category of a benchmark."""
    from densevl.evaluation import anomaly_run
    from densevl.evaluation.benchmarks.anomaly import open_anomaly

    found = open_anomaly(dataset, root)
    rows = anomaly_run.evaluate_anomaly(found, anomaly_run.detectors(model, scoring=scoring), shots=shots)
    facts = {"dataset": dataset, "model": model, "scoring": scoring, "shots": shots, "note": found.note}
    anomaly_run.write(rows, out, facts)
    stdout().print(escape(anomaly_run.markdown(rows)))


def _experiment(
    dataset: str,
    root: Path | None,
    model: str,
    recipe: str | None,
    limit: int | None,
    measures: str,
    **more: Any,
) -> Any:
    from densevl.evaluation import Experiment

    return Experiment(
        dataset,
        root=None if root is None else str(root),
        model=model,
        recipe=recipe,
        limit=limit,
        measures=tuple(name.strip() for name in measures.split(",")),
        **more,
    )


@one_line_errors
def label(
    source: Annotated[Path, typer.Argument(help="A folder, with all below it, or a text file with a path a line.")],
    labels: Annotated[str, typer.Option(help="The classes, commas between; or a file.")],
    out: Annotated[Path, typer.Option(help="A new folder, or one of a run to go on with.")],
    model: Model = "auto",
    recipe: Recipe = None,
    background: Background = "auto",
    ray: Annotated[str | None, typer.Option(help="'local', or the address of a Ray cluster such as 'auto'.")] = None,
    workers: Annotated[int, typer.Option(help="Ray workers, each with the model loaded once.")] = 1,
    shard: Annotated[int, typer.Option(help="Images a shard.")] = 64,
) -> None:
    """Label many images, resumable, on one machine or on a Ray cluster; exit code 3 if some could not be read."""
    from densevl.evaluation.labelling import Labelling
    from densevl.evaluation.labelling import label as run_labelling
    from densevl.vocabulary import LabelSet

    asked = LabelSet.parse(labels)
    words = tuple(" | ".join(strings) for strings in asked.synonyms)
    work = Labelling(words, str(out), model=model, recipe=recipe, background=background)
    done, bad = run_labelling(work, source, size=shard, ray=ray, workers=workers)
    stdout().print(f"{done} images labelled, {bad} could not be; see {escape(str(out))}")
    if bad:
        raise typer.Exit(3)
