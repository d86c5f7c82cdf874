"""Long tasks are killed at random moments and restarted: is anything lost, cut or different?

    python -m tools.kills --kills 20 --seed 0 --page docs/folders.md

Each command does small generated pictures with the model `mini`, once undisturbed and once in another folder, where
SIGKILL ends all its processes at random moments and it is restarted until it finishes. This is repeated in one folder
after another until enough kills hit a running task. After each kill all files with final names are read back, and those
that the undisturbed run also has are compared with it. At the end both folders are compared byte for byte, except for
the times in reports of evaluations and the overlays of videos: x264 gives other
bytes for the same pixels, so their decoded frames are compared.

Columns: `kills` that hit a running task; `read` files that were read back after kills; `cut`, those of them that were
unreadable; `again` the most work that was repeated after one kill, if files tell (results of images, or counts of
evaluations); `left` temporary files at the end; `differ` files that differ at the end, or are missing. With `--page`
the table is written to that page, between its markers.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load as load_tensors

from densevl.evaluation.checkpoint import State
from densevl.files import CONFIDENCE_MARK, OVERLAY_MARK, PARTS
from tests.evaluation.region_miniatures import make_instances, make_panoptic
from tools.arguments import Parser
from tools.bench_folder import LABELS, content, make_images
from tools.pages import replaced

GROWING = ("errors.jsonl", "densevl.json", "bank.json", "-index.npz", "state/")
"""Files that are different at each moment."""
FOLDERS = 10
"""Most folders per command to reach the number of kills."""
TIMES = ("report.html", "results.json")
"""Reports that contain the seconds of their run; `_content_of` removes those."""


@dataclass(frozen=True)
class Long:
    """A command. Attributes: words: its arguments, "OUT" for its folder. given: writes its inputs. code: exit code."""

    words: str
    given: Callable[[Path], None]
    code: int = 0


def _pictures(folder: Path) -> None:
    make_images(folder / "photos", 40, 2)


def _many(folder: Path) -> None:
    make_images(folder / "photos", 300, 2)


def _semantic(folder: Path) -> None:
    make_images(folder / "set/images", 40, 0)
    for path in (folder / "set/images").rglob("*.png"):
        truth = folder / "set/labels" / path.relative_to(folder / "set/images")
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) // 22).save(truth)
    (folder / "set/names.txt").write_text(LABELS.replace(",", "\n"))


def _instances(folder: Path) -> None:
    make_instances("own", folder / "set", 30)


def _segments(folder: Path) -> None:
    make_panoptic("own", folder / "set", 30)


def _anomalies(folder: Path) -> None:
    for kind, count in (("train/good", 2), ("test/good", 10), ("test/dent", 10)):
        make_images(folder / "pictures", count, 0)
        (folder / "set/cup" / kind).mkdir(parents=True)
        for path in sorted((folder / "pictures").rglob("*.png")):
            shutil.move(path, folder / "set/cup" / kind / path.name)
    (folder / "set/cup/ground_truth/dent").mkdir(parents=True)
    for path in (folder / "set/cup/test/dent").iterdir():
        mask = np.zeros((64, 64), np.uint8)
        mask[8:16, 8:16] = 255
        Image.fromarray(mask).save(folder / "set/cup/ground_truth/dent" / f"{path.stem}_mask.png")


def _classes(folder: Path) -> None:
    make_images(folder / "photos", 200, 0)


def _clips(folder: Path) -> None:
    import av

    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for clip in range(4):
        with av.open(str(folder / f"clips/{clip}.mp4"), "w") as movie:
            stream = movie.add_stream("libx264", rate=25)
            stream.width = stream.height = 64
            for _ in range(20):
                frame = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                movie.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            movie.mux(stream.encode())


MINI = f"--labels {LABELS} --model mini"
GRID = "--model mini --proposals grid"
EVAL = "eval run folder --root set --model mini --out OUT --save-every 0 --dump --task"
COMMANDS = {
    "segment": Long(f"segment photos {MINI} --out OUT --sheet", _pictures, 3),
    "regions": Long(
        f"regions photos {MINI} --proposals grid --as coco,panoptic,labelme --out OUT --sheet", _pictures, 3
    ),
    "anomaly score": Long("anomaly score photos --model mini --out OUT --sheet", _pictures, 3),
    "search": Long(f"search photos --for penguin {GRID} --out OUT", _many, 3),
    "eval semantic": Long(f"{EVAL} semantic", _semantic),
    "eval instance": Long(f"{EVAL} instance --proposals grid", _instances),
    "eval panoptic": Long(f"{EVAL} panoptic --proposals grid", _segments),
    "eval anomaly": Long("eval run mvtec --root set --model mini --out OUT --save-every 0 --dump", _anomalies),
    "fewshot fit": Long("fewshot fit photos --model mini --out OUT/head --overwrite", _classes),
    "video": Long(f"video clips {MINI} --out OUT", _clips),
    "bank build": Long(f"bank build photos {GRID} --out OUT", _many, 3),
}


def started(words: Sequence[str], folder: Path) -> int:
    """Start the command in a separate process, where everything is imported already, and return its number."""
    child = os.fork()
    if child:
        with suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)  # a group that can be killed as one
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        from densevl.cli import app

        app(list(words), prog_name="densevl")
        os._exit(0)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:  # noqa: BLE001  a child must never come back
        os._exit(70)


def ended(child: int) -> int:
    """Wait for it, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_back(path: Path) -> None:
    """Read a file to its end; raise the reader's error if it is cut."""
    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jsonl":
        [json.loads(line) for line in data.split(b"\n")[:-1]]  # each row is one write; the last may be incomplete
    elif path.suffix in (".png", ".jpg"):
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    elif path.suffix in (".npz", ".npy"):
        found = np.load(io.BytesIO(data))
        [found[name] for name in found] if path.suffix == ".npz" else found.shape
    elif path.suffix == ".safetensors":
        load_tensors(data)
    elif path.suffix == ".zip":
        if zipfile.ZipFile(io.BytesIO(data)).testzip() is not None:
            raise ValueError("a part of it is damaged")
    elif path.suffix == ".mp4":
        import av

        with av.open(str(path)) as movie:
            if not sum(1 for _ in movie.decode(video=0)):
                raise ValueError("it has no frame")
    elif not data.endswith(b"\n") and path.suffix != ".html":
        raise ValueError("its last line is cut")


def _final(folder: Path) -> list[Path]:
    """Return the files with final names."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".densevl-")]


def _content_of(name: str, data: bytes) -> bytes:
    """Return a file's content without the parts that differ from run to run."""
    if name == "results.json":
        return json.dumps({key: value for key, value in json.loads(data).items() if key != "run"}).encode()
    if name == "report.html":
        return re.sub(rb"<h2>Time.*?<h2>Protocol", b"", data, flags=re.DOTALL)
    if name.endswith(".mp4"):
        import av

        with av.open(io.BytesIO(data), "r") as movie:
            return b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in movie.decode(video=0))
    return data


def comparable(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder that should not differ between runs: state/ has one file per run."""
    return {
        name: _content_of(name, data)
        for name, data in content(folder).items()
        if not name.startswith("state/") and not name.startswith(".densevl-")
    }


def _seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Return which files exist, by path and time of change."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in _final(folder)}


def _again(out: Path) -> int | None:
    """Return the predictions of an evaluation that exist but are not counted; None if it is not one."""
    if not (out / "state").is_dir():
        return None
    counted = sum(int(State.load(path).done.sum()) for path in (out / "state").glob("*.npz"))
    kept = [path for path in (out / "predictions").rglob("*") if path.suffix in (".png", ".npy")]
    lines = sum(path.read_bytes().count(b"\n") for path in (out / "state").glob("*.jsonl"))
    return max(0, max(lines, len(kept)) - counted)


def killed(name: str, kills: int, rng: random.Random) -> dict[str, Any]:
    """Run a command undisturbed and then with kills; return a row of the table."""
    long = COMMANDS[name]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        long.given(work)
        since = time.monotonic()
        code = ended(started(long.words.replace("OUT", "whole").split(), work))
        took = time.monotonic() - since
        row: dict[str, Any] = {"command": name, "kills": 0, "read": 0, "cut": [], "again": 0, "exit": [code]}
        row |= {"left": [], "differ": []}
        for _ in range(FOLDERS):  # a run may end before it is killed
            if row["kills"] < kills:
                _resumed(long, work, row, kills - row["kills"], took, rng)
                shutil.rmtree(work / "killed")
        return row


def _resumed(long: Long, work: Path, row: dict[str, Any], kills: int, took: float, rng: random.Random) -> None:
    """Do a command in a folder of its own, killed up to so often, and compare; adds to the row."""
    whole, out, words = comparable(work / "whole"), work / "killed", long.words.replace("OUT", "killed").split()
    total, before = len(_final(work / "whole")), _seen(out)
    alone = total <= 3  # files that come at the end: only the clock tells moments apart
    for limit in sorted(rng.randrange(total) for _ in range(kills)):
        child = started(words, work)
        if alone or rng.random() < 0.2:
            time.sleep(took * rng.random())
        else:
            while len(_final(out)) <= limit and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            time.sleep(rng.random() * 0.03)
        met = _struck(child)
        row["kills"] += met
        _examine(row, out, whole)
        before = _count_again(row, before, out)
        if not met:  # it had ended: nothing is left to do here
            break
    row["exit"].append(ended(started(words, work)))
    if not (out / "state").is_dir():
        _count_again(row, before, out)
    end = comparable(out)
    row["left"] += sorted(str(path.relative_to(out)) for path in out.rglob(PARTS))
    row["differ"] += sorted(key for key in {*whole, *end} if whole.get(key) != end.get(key))


def _struck(child: int) -> bool:
    """Kill a command with all its processes; False if it had ended."""
    try:
        os.killpg(child, signal.SIGKILL)
        return ended(child) == -signal.SIGKILL
    except (ProcessLookupError, ChildProcessError):
        return False


def _examine(row: dict[str, Any], out: Path, whole: dict[str, bytes]) -> None:
    """Read all files back after a kill, and compare them with those of the undisturbed run; adds to the row."""
    for path in _final(out):
        try:
            row["read"] += 1
            read_back(path)
            own = str(path.relative_to(out))
            data = _content_of(own, path.read_bytes())
            if own in whole and whole[own] != data and not own.endswith(GROWING):
                raise ValueError("it is another than that of the undisturbed run")
        except Exception as error:  # noqa: BLE001  each reader raises its own
            row["cut"].append(f"{path.name}: {error}")


def _count_again(row: dict[str, Any], before: dict[str, tuple[int, int]], out: Path) -> dict[str, tuple[int, int]]:
    """What there is now; adds to the row what was done again since it was `before`."""
    now = _seen(out)
    written = _written_again(before, now, out)
    row["again"] = max(row["again"], written if (counted := _again(out)) is None else counted)
    return now


def _written_again(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]], out: Path) -> int:
    """Return how many images had a result that was written again."""
    again = [path for path, seen in before.items() if now.get(path, seen) != seen and _result(path, out)]
    return len({Path(path).stem.removesuffix(OVERLAY_MARK).removesuffix(CONFIDENCE_MARK) for path in again})


def _result(path: str, out: Path) -> bool:
    """Tell whether a file belongs to one image, and is not a list of all."""
    return not any(sign in path.removeprefix(str(out)) for sign in (*GROWING, *TIMES))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of docs/folders.md."""
    lines = [f"| command | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        figures = [f"{row[key] if isinstance(row[key], int) else len(row[key]):,}" for key in COLUMNS]
        lines.append(f"| `{row['command']}` | {' | '.join(figures)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module text. The exit code is 1 if anything was lost, cut or different."""
    parser = Parser(prog="python -m tools.kills", description=__doc__)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="with commas between")
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="a page to write the table into")
    given = parser.parse_args(arguments)
    import torch

    import densevl.cli  # noqa: F401  for all that are started

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in given.commands.split(","):
        rows.append(row := killed(name, given.kills, random.Random(f"{given.seed} {name}")))
        sys.stdout.write("\n".join(table(rows).splitlines()[-1 if len(rows) > 1 else 0 :]) + "\n")
        for key in ("cut", "left", "differ"):
            for told in row[key][:5]:
                sys.stderr.write(f"{name}: {key}: {told}\n")
        if set(row["exit"]) != {COMMANDS[name].code}:
            sys.stderr.write(f"{name}: exit codes {row['exit']}\n")
        sys.stdout.flush()
    if given.page is not None:
        start, end = "<!-- kills: python -m tools.kills -->", "<!-- /kills -->"
        text = given.page.read_text(encoding="utf-8")
        given.page.write_text(replaced(text, f"{start}\n\n{table(rows)}\n\n{end}", start, end), encoding="utf-8")
    return int(any(row["cut"] or row["left"] or row["differ"] for row in rows))


COLUMNS = {
    "kills": "kills",
    "read": "files read back after them",
    "cut": "cut",
    "again": "done twice, at most",
    "left": "temporary files at the end",
    "differ": "files that differ",
}
"""The heading of each figure of a row."""

if __name__ == "__main__":
    sys.exit(main())
