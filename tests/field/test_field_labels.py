"""Labels as people write them: class files of other projects, lists pasted from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, cases

from densevl import LabelSet
from densevl.vocabulary import Background, Descriptors
from densevl.vocabulary.templates import prompted, templates


def _file(name: str, content: str | bytes, *, shape: Callable[[Path], Any] = str) -> Callable[[Path], LabelSet]:
    """Labels given as a file of this name and content."""

    def run(folder: Path) -> LabelSet:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return LabelSet.parse(shape(path))

    return run


def _given(labels: Any) -> Callable[[Path], LabelSet]:
    return lambda folder: LabelSet.parse(labels)


def _are(*names: str) -> Callable[[LabelSet], bool]:
    return lambda labels: labels.names == names


def _mean(*words: tuple[str, ...]) -> Callable[[LabelSet], bool]:
    return lambda labels: labels.synonyms == words


CAT_DOG = _are("cat", "dog")
LINES = "cat\ndog\n"
COCO = {"images": [], "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]}
MANY = [f"class number {number}" for number in range(200_000)]
ORDINARY = (
    *("St. Bernard", "t-shirt", "4x4", "no. 7 bus", "U.S. flag", "E. coli", "dog's bowl", "tv/monitor", "C++ book"),
    *("mp3 player", "7-eleven", 'a 5" pipe', "rock 'n' roll", "black and white cat", "P.O. box", "{weird} label"),
)

FILES = (
    *(
        Case(
            f"a labels file {name} becomes one label",
            "a class file with another ending",
            _file(name, LINES),
            None,
            "",
            CAT_DOG,
        )
        for name in ("voc.names", "classes", "UP.TXT", "labels.lst", "obj.data", "my.classes.v2")
    ),
    Case(
        "@file with any ending",
        "a class file after @",
        _file("c.names", LINES, shape=lambda p: f"@{p}"),
        None,
        "",
        CAT_DOG,
    ),
    Case(
        "a path object without ending",
        "pathlib.Path of a class file",
        _file("classes", LINES, shape=Path),
        None,
        "",
        CAT_DOG,
    ),
    Case("a missing file becomes a label", "a mistyped name of a file", _given("no-such.names"), "not there"),
    Case("a missing path without ending becomes a label", "a path", _given("/no/such/classes"), "not there"),
    Case(
        "a folder is read as a word",
        "a folder of class files",
        lambda folder: LabelSet.parse(str(folder)),
        "is a folder",
    ),
    Case(
        "a file named in a list becomes a label",
        "a path in a list",
        _given(["cat", "classes.txt"]),
        "the name of a file",
    ),
    Case(
        "a photo named in a list is read as a word",
        "the path of an image as a string",
        _given(["cat.jpg"]),
        "pathlib.Path",
    ),
    Case("an address is read as a word", "a URL", _given("https://example.com/coco.names"), "address"),
    Case(
        "a picture is read as classes",
        "the wrong file",
        _file("classes", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        r"picture \(PNG\)",
    ),
    Case("a spreadsheet is read as classes", "an .xlsx file", _file("c.xlsx", b"PK\x03\x04\x14\0\x06\0"), "an archive"),
    Case(
        "a byte order mark becomes part of a class",
        "Notepad's UTF-8",
        _file("c.txt", b"\xef\xbb\xbfcat\r\ndog\r\n"),
        None,
        "",
        CAT_DOG,
    ),
    Case("UTF-16 is unreadable", "Notepad's Unicode", _file("c.txt", LINES.encode("utf-16")), None, "", CAT_DOG),
    Case("Latin-1 gives odd letters", "an old encoding", _file("c.txt", "café\n".encode("latin-1")), "UTF-8"),
    Case(
        "a line of commas becomes one class",
        "all classes on the one line of a file",
        _file("c.txt", "cat, dog"),
        None,
        "one line",
        CAT_DOG,
    ),
    Case("bullets become part of a class", "a list from a chat", _file("c.txt", "- cat\n- dog\n"), None, "", CAT_DOG),
    Case(
        "remarks become part of a class",
        "remarks behind classes",
        _file("c.txt", "cat # the pet\ndog\n"),
        None,
        "comment",
        CAT_DOG,
    ),
    Case(
        "labelme's __ignore__ becomes a class",
        "labelme's labels.txt",
        _file("labels.txt", "__ignore__\n_background_\ncat\ndog"),
        None,
        "left out",
        CAT_DOG,
    ),
    Case(
        "code becomes classes",
        "a Python file with CLASSES",
        _file("voc.py", 'CLASSES = (\n    "cat",\n'),
        "not a list of classes",
    ),
    Case(
        "a label map of TensorFlow becomes classes",
        "a .pbtxt",
        _file("m.pbtxt", "item {\n  id: 1\n  name: 'cat'\n}"),
        "not a list of classes",
    ),
    Case("keys and values become classes", "name: meaning", _file("c.txt", "cat: pet\ndog: pet\n"), "colon"),
    Case("an empty file gives an empty result", "a file of 0 bytes", _file("c.txt", ""), "no labels"),
)
NUMBERED = (
    *(
        Case(f"numbers become class names: {text!r}", "a numbered class file", _file("c.txt", text), None, "", CAT_DOG)
        for text in (
            "0 cat\n1 dog",
            "0: cat\n1: dog",
            "1,cat\n2,dog",
            "1. cat\n2) dog",
            "0\tcat\n1\tdog",
            "cat 0\ndog 1",
            "0 cat 9 9 9\n1 dog 0 0 8",
        )
    ),
    Case(
        "classes in the wrong order",
        "numbers that are not in order",
        _file("c.txt", "1 dog\n0 cat"),
        None,
        "order of their numbers",
        CAT_DOG,
    ),
    Case(
        "numbers with gaps become class names",
        "ids of another dataset",
        _file("c.txt", "17: cat\n18: dog\n20: elk"),
        None,
        "left out",
        _are("cat", "dog", "elk"),
    ),
    Case(
        "colours become class names",
        "CamVid's palette",
        _file("c.txt", "64 128 64\tcat\n192 0 128\tdog"),
        None,
        "left out",
        CAT_DOG,
    ),
    Case(
        "colours and colons of CVAT become part of a class",
        "labelmap.txt of CVAT",
        _file("labelmap.txt", "# label:color_rgb:parts:actions\ncat:0,0,0::\ndog:128,0,9:a,b:\n"),
        None,
        "",
        CAT_DOG,
    ),
    Case(
        "ids of ImageNet become class names",
        "synset_words.txt",
        _file("c.txt", "n02123045 tabby, tabby cat\nn02084071 dog"),
        None,
        "left out",
        _mean(("tabby", "tabby cat"), ("dog",)),
    ),
    Case("only numbers", "a file of ids", _file("c.txt", "0\n1\n2\n"), "only numbers"),
    Case(
        "numbers that are part of the class are dropped",
        "models of aircraft",
        _file("c.txt", "boeing 737\nairbus 320\nembraer 190"),
        None,
        "",
        lambda labels: labels.names[0] == "boeing 737",
    ),
    Case(
        "doors are taken for ids",
        "classes that begin with a number",
        _file("c.txt", "2 door car\n4 door car\nbus"),
        None,
        "",
        lambda labels: labels.names[0] == "2 door car",
    ),
    Case(
        "some lines are numbered", "a file edited by hand", _file("c.txt", "0 cat\n1 dog\nelk"), None, "not all", None
    ),
)
TABLES = (
    Case(
        "a header becomes a class", "a column with its name", _file("c.txt", "name\ncat\ndog"), None, "heading", CAT_DOG
    ),
    Case(
        "the header class,name", "a table in a text file", _file("c.txt", "class,name\n0,cat\n1,dog"), None, "", CAT_DOG
    ),
    Case(
        "the header Idx,Name",
        "ADE20K's table",
        _file("c.csv", 'Idx,Ratio,Name\n1,0.2,"cat;kitten"\n2,0.1,dog'),
        None,
        "",
        _mean(("cat", "kitten"), ("dog",)),
    ),
    Case("semicolons of a German Excel", "CSV", _file("c.csv", "id;name\n0;cat\n1;dog"), None, "", CAT_DOG),
    Case("a TSV", "tabs", _file("c.tsv", "cat\t0\ndog\t1\n"), None, "", CAT_DOG),
    Case("one column", "CSV without a header", _file("c.csv", "cat\ndog\n"), None, "", CAT_DOG),
    Case("the wrong column", "a table of images", _file("c.csv", "image,breed\na.jpg,pug\n"), "'image', 'breed'"),
    Case(
        "ids of Open Images become classes",
        "class-descriptions.csv",
        _file("c.csv", "/m/01yrx,cat\n/m/0bt9lr,dog\n"),
        None,
        "",
        CAT_DOG,
    ),
    Case("a table as an object", "a pandas frame", _given(type("Frame", (), {"columns": ["a"]})()), "tolist"),
)
DATA = (
    *(
        Case(
            f"{kind}: ids become classes",
            "JSON of another project",
            _file("c.json", json.dumps(data)),
            None,
            "",
            CAT_DOG,
        )
        for kind, data in {
            "a list": ["cat", "dog"],
            "ids": {"1": "dog", "0": "cat"},
            "config.json": {"architectures": ["X"], "id2label": {"0": "cat", "1": "dog"}},
            "label2id": {"label2id": {"dog": 1, "cat": 0}},
            "class_to_idx": {"dog": 1, "cat": 0},
            "COCO": COCO,
            "nested names": {"names": ["cat", "dog"], "nc": 2},
        }.items()
    ),
    Case(
        "Keras' class index",
        "ids beside names",
        _file("c.json", '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"]}'),
        None,
        "",
        CAT_DOG,
    ),
    Case(
        "COCO's ids with gaps",
        "numbers change in silence",
        _given({"categories": [{"id": 17, "name": "cat"}, {"id": 44, "name": "dog"}]}),
        None,
        "gaps",
        CAT_DOG,
    ),
    Case("id2label with numbers", "a Python dict", _given({1: "dog", 0: "cat"}), None, "", CAT_DOG),
    Case(
        "data.yaml",
        "Ultralytics' data set",
        _file("data.yaml", "path: x\nnames:\n  0: cat\n  1: dog\n"),
        None,
        "",
        CAT_DOG,
    ),
    Case(
        "data.yaml with a list",
        "Ultralytics' data set",
        _file("data.yml", "nc: 2\nnames: [cat, dog]\n"),
        None,
        "",
        CAT_DOG,
    ),
    Case("a list in YAML", "a plain list", _file("c.yaml", "- cat\n- dog\n"), None, "", CAT_DOG),
    Case("JSON with the ending .txt", "a renamed file", _file("c.txt", '["cat", "dog"]'), None, "", CAT_DOG),
    Case(
        "yes and no of YAML",
        "words that YAML reads as true and false",
        _file("c.yaml", "names: [yes, no]\n"),
        "in quotes",
    ),
    Case("a JSON list in the argument", "a list from another program", _given('["cat","dog"]'), None, "", CAT_DOG),
    Case("a Python list in the argument", "repr of a list", _given("['cat', 'dog']"), None, "", CAT_DOG),
    Case("half a list", "a list cut by the shell", _given('["cat'), "part of a list"),
    Case("a number among labels", "JSON of the wrong kind", _given(["cat", 3]), "must be a string"),
    Case("a list within a list", "JSON of the wrong kind", _given([["cat"], ["dog"]]), "must be a string"),
    Case("a dict within a dict", "JSON of the wrong kind", _given({"cat": {"color": "black"}}), "has a dict"),
    Case("null", "JSON of the wrong kind", _file("c.json", "null"), "holds null"),
    Case("two labels of one number", "counts taken for ids", _given({"cat": 5, "dog": 5}), "the number 5"),
    Case("an image in place of labels", "arguments swapped", _given(np.zeros((4, 4, 3), np.uint8)), "one ndarray"),
    Case("strings of numpy", "an array of strings", _given(np.array(["cat", "dog"])), None, "", CAT_DOG),
    Case("bytes", "a file read in binary", _given(b"cat,dog"), "bytes"),
)
STRINGS = (
    *(
        Case(
            f"{text!r} is one label",
            "several in one string, as other tools part them",
            _given(text),
            None,
            "separated by|one a line",
            CAT_DOG,
        )
        for text in (
            "cat . dog",
            "cat . dog .",
            "cat. dog.",
            "cat;dog",
            "cat; dog;",
            "cat\ndog",
            "cat\tdog",
            "cat\uff0cdog",
            "cat\u3001dog",
        )
    ),
    Case("a line break within a list", "a wrapped list", _given("cat,\n  dog"), None, "", CAT_DOG),
    Case("commas and semicolons", "two marks, one for synonyms?", _given("cat, kitten; dog"), 'hold both "," and ";"'),
    Case("commas and full stops", "two marks", _given("cat . dog, elk"), 'hold both "," and " . "'),
    Case("quotes become part of a label", "a pasted list", _given('"cat", "dog"'), None, "quotes", CAT_DOG),
    Case(
        "typographic quotes",
        "a list pasted from a document",
        _given("\u201ccat\u201d,\u2018dog\u2019"),
        None,
        "quotes",
        CAT_DOG,
    ),
    Case("quotes around all", "quoted twice in a script", _given("'cat,dog'"), None, "", CAT_DOG),
    Case("a quote that does not end", "a comma within quotes", _given('"tench, fish",dog'), "quote"),
    Case("a full stop becomes part of a label", "a sentence", _given(["cat.", "dog"]), None, "full stop", CAT_DOG),
    Case("entities of HTML", "a list from a web page", _given("cat &amp; dog"), None, "HTML", _are("cat & dog")),
    Case("an id of Open Images", "a MID as a label", _given("/m/01g317"), "Open Images"),
    Case("a number as a label", "ids in place of names", _given("0,1"), None, "number or an id", _are("0", "1")),
    Case("LABEL_0", "names of a model that nobody named", _given("LABEL_0,LABEL_1"), None, "number or an id", None),
    Case("underscores", "names of folders", _given(["traffic_light"]), None, "underscores", _mean(("traffic light",))),
    Case(
        "a list of one string with commas",
        "a shell argument not parted",
        _given(["cat,dog"]),
        None,
        "separates none within a list",
        None,
    ),
    *(
        Case(f"{word!r} warns for nothing", "an ordinary label", _given(f"{word},sky"), None, "", _are(word, "sky"))
        for word in ORDINARY
    ),
    *(
        Case(f"{word!r} alone warns for nothing", "an ordinary label", _given(word), None, "", _are(word))
        for word in ORDINARY
    ),
)
LARGE = (
    Case("200,000 labels", "a whole dictionary", _given(MANY), "holds at most"),
    Case("200,000 keys", "a dict of 200,000", _given(dict.fromkeys(MANY, "x")), "holds at most"),
    Case("200,000 lines", "a file of 200,000", _file("c.txt", "\n".join(MANY)), "holds at most"),
    Case("200,000 in a string", "a string of 200,000", _given(",".join(MANY)), "holds at most"),
    Case("200,000 lines of YAML", "YAML of 4 MB", _file("c.yaml", "- " + "\n- ".join(MANY)), "the limit is"),
    Case(
        "200,000 descriptors",
        "a dict of 200,000",
        lambda folder: Descriptors.parse(dict.fromkeys(MANY, "x")),
        "the limit is",
    ),
    Case(
        "200,000 background words",
        "a string of 200,000",
        lambda folder: Background.parse(",".join(MANY)),
        "the limit is",
    ),
)


def _background(spec: str) -> Callable[[Path], Background]:
    return lambda folder: Background.parse(spec)


def _word_file(folder: Path) -> Background:
    (folder / "bg.txt").write_text("sky\nwall\n")
    return Background.parse(str(folder / "bg.txt"))


def _looks(content: str | None) -> Callable[[Path], Descriptors]:
    def run(folder: Path) -> Descriptors:
        if content is not None:
            (folder / "looks.json").write_text(content)
        return Descriptors.parse(folder / "looks.json")

    return run


OTHERS = (
    *(
        Case(f"background {text!r} is a word", "a mistyped name", _background(text), f"closest: {name}")
        for text, name in {
            "vok": "voc",
            "autto": "auto",
            "coco": "coco-object",
            "voc21": "voc",
            "unkown": "unknown",
            "AUTO": "auto",
        }.items()
    ),
    *(
        Case(
            f"background {word!r} is refused",
            "a word near a name",
            _background(word),
            right=lambda got, word=word: got.words == (word,),
        )
        for word in ("nose", "stone", "phone", "text", "automobile")
    ),
    Case(
        "a file of background words becomes a word",
        "a file",
        _word_file,
        right=lambda got: got.words == ("sky", "wall"),
    ),
    Case("a missing file becomes a background word", "a file", _background("bg.txt"), "not there"),
    Case("background words parted by semicolons", "a mark of other tools", _background("sky; wall"), "commas"),
    Case("descriptors that are not there", "a mistyped name", _looks(None), "not there"),
    Case("descriptors that are a list", "JSON of the wrong kind", _looks('["four legs"]'), "list; give a dict"),
    Case("descriptors with numbers", "JSON of the wrong kind", _looks('{"cat": 3}'), "int"),
    Case("descriptors that are no JSON", "a damaged file", _looks("{"), "JSON"),
)
INSIDE = (
    Case(
        "an entry of a list that is a list of its own",
        "marks of other tools within a list",
        _given(["cat; dog", "bird"]),
        None,
        "separates none within a list",
    ),
    Case(
        "words for one class as one word",
        "a dict of strings",
        _given({"cat": "kitty|tom"}),
        right=_mean(("kitty", "tom")),
    ),
    Case("a threshold in per cent becomes a word", "a number with a sign", _background("30%"), "such as 0.3"),
)
TABLE = (*INSIDE, *FILES, *NUMBERED, *TABLES, *DATA, *STRINGS, *LARGE, *OTHERS)


@cases(*TABLE)
def test_labels_are_what_was_meant_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


def test_a_prompt_as_a_label_is_told_where_templates_follow() -> None:
    for word in ("a photo of a cat", "This is a blurry picture of the dog", "a {}"):
        assert "once more" in prompted([word], templates("photo"))
        assert prompted([word], ("{}",)) == ""
    assert prompted(["photo", "picture frame", "cat in a photo of a dog"], templates("photo")) == ""
