"""Head "prompt": contexts around the names of classes are learned on the examples, and then serve any words.

CoOp (Zhou et al., IJCV 2022) with several contexts (ECO), a tie to the words as they were (KgCoOp, Yao et al., CVPR
2023), and sessions (CPE-CLIP, D'Alessandro et al., 2023). All rows are said with the same contexts, those of classes
without examples and of background words too. With `conditioned` each image has contexts of its own (CoCoOp), and the
rows that follow; with `vision` tokens beside the patches of the image tower are learned too (MaPLe). Shape letters: N
samples, R rows, E joint space, J blocks, n tokens, D width of the image tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, ModelError, OptionError
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.prompts import visual
from densevl.fewshot.prompts.conditioned import Conditioned, Net, learn
from densevl.fewshot.prompts.contexts import Contexts, Spoken, Tower, joined, size, unit_prompts
from densevl.fewshot.prompts.fitting import Fit, Plan, Progress, Schedule
from densevl.fewshot.prompts.training import Run, Task
from densevl.fewshot.settings import COUNT, SEED, Rule, require
from densevl.vocabulary.learned_templates import NET, TOKENS, LearnedTemplate, from_state, to_state
from densevl.vocabulary.prompts import Prompt
from densevl.weights import below

STARTS = ("words", "random")
CONTEXTS = 4


class PromptLearner(Head):
    """Rows of words in learned contexts; `text` are these rows after `fit`.

    Attributes:
        templates: the learned ones, or those it was given, where they are better; `TextClassifier` takes both.
        conditioned: contexts that depend on the image, and the net that shifts them; None where there are none.
        tokens: (J, n, D) that stand beside the patches of an image; None where there are none. Features of images to be
            judged are then those of `visual.Looking`.
    """

    name: ClassVar[str] = "prompt"
    parts: ClassVar[tuple[str, ...]] = ("tower", "templates", "checkpoint", "progress")
    rules: ClassVar[Mapping[str, Rule]] = {
        "contexts": Rule(1, whole=True, optional=True),
        "start": Rule(words=STARTS),
        "length": COUNT,
        "tie": Rule(),
        "steps": Rule(whole=True),
        "rate": Rule(above=True),
        "folds": COUNT,
        "seed": SEED,
        "conditioned": Rule(flag=True),
        "batch": COUNT,
        "views": Rule(whole=True),
        "deep": COUNT,
        "vision": Rule(flag=True),
    }
    adds: ClassVar[bool] = True

    def __init__(
        self,
        tower: Tower | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        *,
        contexts: int | None = None,
        start: str = "words",
        length: int = 4,
        tie: float = 1.0,
        steps: int = 50,
        rate: float = 0.1,
        folds: int = 2,
        seed: int = 0,
        conditioned: bool = False,
        batch: int = 4,
        views: int = 0,
        deep: int = 1,
        vision: bool = False,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Settings.

        Args:
            tower: the model whose text tower reads them. templates: what the rows of words were made with.
            contexts: how many are averaged; None is four, and one with `vision`. start: "words", at templates, or
                "random". length: words of those that start at random. tie: to the rows of words, 0 or more. steps: of
                Adam on all examples, at most.
            rate: of Adam, as a share of the root mean square of words' numbers.
            folds: in which examples are judged by the others, to find the best number of steps, which may be none; 1
                takes all. seed: of random words.
            conditioned: a small net shifts the contexts by the vector of the image that is judged (CoCoOp); folds then
                choose between all steps and none. batch: images of one of its steps.
            views: other looks at each example that it is also learned from; see `fit`. 0 for none.
            deep: blocks of the text tower in which the words before names are learned: 1 as words alone, more also as
                the hidden states at the inputs of further blocks (the text side of MaPLe, CVPR 2023).
            vision: tokens beside the patches of the image tower, in as many blocks, follow from the words before names
                by learned linear maps (the other side of MaPLe); `fit` then wants pixels, and folds choose between all
                steps and none.
            checkpoint: a file to write while fitting, from which a killed fit goes on; with `conditioned` it begins
                anew. progress: called with steps done and all.

        Raises:
            OptionError: no tower that reads vectors as words, or a setting out of range.
            ModelError: it is not so deep.
        """
        require({"contexts": contexts}, self.rules)
        contexts = (1 if vision else CONTEXTS) if contexts is None else contexts
        whole = {"contexts": contexts, "length": length, "steps": steps, "folds": folds, "batch": batch}
        whole |= {"views": views, "deep": deep}
        super().__init__(**whole, start=start, tie=tie, rate=rate, seed=seed, conditioned=conditioned, vision=vision)
        if tower is None or not hasattr(tower, "encode_learned"):
            name = f"model '{tower.name}'" if tower is not None else "head 'prompt'"
            raise OptionError(f"{name} has no text tower to learn words for; take a CLIP model")
        if conditioned and deep > 1:
            raise OptionError("conditioned shifts words, and not the hidden states of deep ones: leave one of them out")
        if vision:
            _require_vision(tower, contexts, conditioned, views, deep)
        self._tower, self.templates = tower, tuple(templates)
        self.conditioned: Conditioned | None = None
        self.tokens: torch.Tensor | None = None
        self._pixels: torch.Tensor | None = None
        self._views: torch.Tensor | None = None
        if deep > 1 and not isinstance(tower, Detached):
            Contexts.drawn(tower, 1, 1, seed).deep(tower, deep)  # refused before the first example
        self._given, self._hooks = self.templates, (checkpoint, progress)
        self._settings: dict[str, Any] = {**whole, "start": start, "tie": tie, "rate": rate, "seed": seed}
        self._settings |= {"conditioned": conditioned, "vision": vision}

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def fit(
        self,
        features_ND: Any,
        labels_N: Any,
        text_CD: torch.Tensor,
        *,
        scale: float = 100.0,
        weights: Any = None,
        strings: Sequence[Sequence[str]] | None = None,
        views: Any = None,
        pixels: torch.Tensor | None = None,
    ) -> Self:
        """Learn from examples; see `Head.fit`.

        Args:
            strings: the words of each row of `text_CD`, which is their mean. views: (N, V, D) float, V other looks at
                each example, as the setting says: each has an equal part of the example's weight, and with
                `conditioned` all looks at one example are to have the same rows (GOPro). pixels: (N, 3, S, S), the
                examples normalised at the trained size, with `vision`.

        Raises:
            LabelError: none, or images and vectors among them.
            ModelError: more words than the tower reads, or views or pixels of another shape, or that are not finite.
        """
        self._views = _looks(views, len(features_ND), self._settings["views"])
        self._strings = _checked(strings, len(text_CD))
        self._pixels = _pictures(pixels, len(features_ND), vision=self._settings["vision"])
        self.templates, self.conditioned, self.tokens = self._given, None, None
        return super().fit(features_ND, labels_N, text_CD, scale=scale, weights=weights, strings=strings)

    def retext(
        self, text_CD: torch.Tensor, moved: Sequence[int], *, strings: Sequence[Sequence[str]] | None = None
    ) -> Self:
        """Know other classes from now on, said in the contexts there are; see `Head.retext`, and `fit` for strings."""
        own = _checked(strings, len(text_CD))
        super().retext(text_CD, moved)
        self.before, self._strings = self.text, own
        if any(isinstance(one, LearnedTemplate) for one in self.templates):
            self.text = self.words(own)
        return self

    @torch.no_grad()
    def words(self, strings: Sequence[Sequence[str]]) -> torch.Tensor:
        """Unit rows (R, E) of any words in the contexts, a row for each list of them.

        Raises:
            ModelError: nothing fitted, more words than the tower reads, or contexts that depend on the image.
        """
        self._fitted()
        self.require_unconditioned()
        spoken = Spoken.of(strings)
        if not any(isinstance(one, LearnedTemplate) for one in self.templates):
            raise ModelError("training kept the words as they were: TextClassifier embeds them in `templates`")
        device = self.text.device
        contexts = Contexts.read(self.templates, device)
        return joined(unit_prompts(self._tower, contexts, spoken.strings), spoken.member.to(device))

    def _fit(self, samples: Samples) -> None:
        self.before = self.text
        own = self._settings
        if not own["steps"]:
            self.found = {"steps": 0}
            return
        task = self._task(samples, self.seen)
        if own["conditioned"]:
            self._condition(task)
            return
        if own["vision"]:
            self._couple(task)
            return
        checkpoint, progress = self._hooks
        schedule = Schedule(own["steps"], own["rate"] * size(self._tower, task.spoken.strings), own["folds"])
        found = Fit(self._tower, task, self._begun(), schedule, checkpoint=checkpoint, progress=progress).run()
        self.found = {"steps": found.steps, "loss": found.loss} if found.steps else {"steps": 0}
        if found.gain is not None:
            self.found["gain"] = found.gain
        if found.contexts is not None:
            self._say(found.contexts)

    def _condition(self, task: Task) -> None:
        """Learn contexts and their net; folds say whether they are better than the words as they were."""
        net = Net.drawn(self.text.shape[1], self._tower.word_width, self._settings["seed"])
        start = Conditioned(self._begun(), net)
        self.conditioned, self.found = learn(self._tower, task, start, self._plan(task), self._hooks[1])

    def _couple(self, task: Task) -> None:
        """Learn a context and its tokens in the image tower; folds as above."""
        blocks = self._settings["deep"]
        made, self.found = visual.learn(self._tower, task, self._begun(), blocks, self._plan(task), self._hooks[1])
        if made is not None:
            self._say(made.contexts)
            self.tokens = made.tokens()

    def _plan(self, task: Task) -> Plan:
        own = self._settings
        rate = own["rate"] * size(self._tower, task.spoken.strings)
        return Plan(own["steps"], own["batch"], rate, own["folds"], own["seed"])

    @torch.no_grad()
    def logits(self, features_ND: torch.Tensor) -> torch.Tensor:
        """As `Head.logits`; where contexts depend on the image, every feature is compared with rows of its own."""
        if self.conditioned is None:
            return super().logits(features_ND)
        self._check_width(features_ND)
        unit_ND = self._embed(features_ND.reshape(-1, features_ND.shape[-1]).to(self.text))
        spoken = Spoken.of(self._strings)
        found = [self.scale * self.conditioned.rows(self._tower, unit_E, spoken) @ unit_E for unit_E in unit_ND]
        logits_NR = torch.stack(found) if found else unit_ND.new_zeros(0, len(self.text))
        return logits_NR.reshape(*features_ND.shape[:-1], len(self.text))

    def require_unconditioned(self) -> None:
        """Refuse what one set of rows is for.

        Raises:
            ModelError: contexts depend on the image, or go with tokens in the image tower.
        """
        if self.conditioned is not None:
            raise ModelError(
                "contexts depend on the image here, so that there are no templates or rows for all images; fit with "
                "conditioned=false for them"
            )
        if self.tokens is not None:
            raise ModelError(
                "the context goes with tokens in the image tower here, and other pipelines have none; fit with "
                "vision=false for templates and rows"
            )

    def _require_adding(self) -> None:
        told = {"conditioned": "contexts that depend on the image", "views": "views", "vision": "vision"}
        if own := next((text for name, text in told.items() if self._settings[name]), None):
            raise ModelError(f"head 'prompt' with {own} learns at once: call fit with all examples")

    def _add(self, samples: Samples) -> None:
        """A session: its classes compete among each other, and its steps are shorter by their share of all classes."""
        own = torch.bincount(samples.labels, minlength=len(self.text)) > 0
        share = float(own.sum() / self.seen.sum())
        learned = Contexts.read(self.templates)
        start = learned if learned.words else self._begun()
        if int(own.sum()) < 2 or not self._settings["steps"]:
            return  # one class alone has nothing to be told from
        task = self._task(samples, own)
        rate = share * self._settings["rate"] * size(self._tower, task.spoken.strings)
        run = Run(self._tower, task, start, self._settings["steps"], rate)
        for _ in range(self._settings["steps"]):
            run.advance()
        self.found = {"steps": self.found["steps"] + run.step, "loss": run.loss}
        self._say(run.contexts)

    def _task(self, samples: Samples, among: torch.Tensor) -> Task:
        """What these samples teach of some classes."""
        chosen = among.nonzero().flatten().tolist()
        targets = (among.cumsum(0) - 1)[samples.labels]
        spoken = Spoken.of([self._strings[index] for index in chosen])
        weights = samples.weights / samples.weights.sum()
        views = None if self._views is None else self._views.to(samples.features)
        fixed = (spoken, self.before[among], self.scale, self._settings["tie"], views, self._pixels)
        return Task(samples.features, targets, weights, *fixed)

    def _begun(self) -> Contexts:
        own, tower = self._settings, self._tower
        if own["start"] == "random":
            start = Contexts.drawn(tower, own["contexts"], own["length"], own["seed"])
        else:
            start = Contexts.of_templates(tower, self._given, own["contexts"], own["length"], own["seed"])
        return start.deep(tower, own["deep"])

    def _say(self, contexts: Contexts) -> None:
        self.templates = contexts.templates(self._tower)
        self.text = self.words(self._strings)

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        return words_NC

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """As `Head.state`, with the learned templates."""
        tensors, facts = super().state()
        if self.conditioned is not None:
            tensors |= {NET + name: value for name, value in self.conditioned.net.tensors().items()}
            own, told = to_state(self.conditioned.contexts.templates(self._tower))
        else:
            own, told = to_state(self.templates)
        if self.tokens is not None:
            own = {**own, TOKENS: self.tokens.detach().contiguous()}
        return {**tensors, **own}, {**facts, **told, "strings": self._strings}

    @classmethod
    def restore(cls, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Self:
        """The head whose `state()` this is; `attach` gives it its model, for other words and more examples."""
        head = super().restore(tensors, facts)
        learned = from_state(tensors, facts)
        if found := below(tensors, NET):
            head.conditioned = Conditioned(Contexts.read(learned, head.text.device), Net(**found))
        else:
            head.templates = learned
        head.tokens = tensors.get(TOKENS)
        head._strings = [list(map(str, own)) for own in facts["strings"]]
        return head

    def attach(self, tower: Tower, templates: Sequence[str]) -> None:
        """Give a restored head the model that it was fitted on, and the templates of its words."""
        self._tower, self._given = tower, tuple(templates)
        self.templates = self.templates or self._given

    def _renumber(self, moved_C: torch.Tensor) -> None:
        """Nothing is kept by class but strings."""

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"before": self.before}

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.before = tensors["before"]

    @classmethod
    def _empty(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Self:
        return cls(Detached(), **settings)


def _checked(strings: Sequence[Sequence[str]] | None, rows: int) -> list[list[str]]:
    if strings is None or len(strings) != rows or not all(strings):
        raise LabelError("head 'prompt' learns what to say around names: give strings=, those of each row of text")
    shown = next((one for own in strings for one in own if isinstance(one, Prompt)), None)
    if shown is not None:
        raise LabelError(f"head 'prompt' learns words around names, and a class is given as {shown.kind}: name it")
    return [list(own) for own in strings]


def _looks(given: Any, samples: int, count: int) -> torch.Tensor | None:
    """Unit rows (N, V, D) of views."""
    views = None if given is None else torch.as_tensor(given).float()
    shape = (0, 0) if views is None else tuple(views.shape[:2])
    if not count and views is None:
        return None
    if views is None or views.ndim != 3 or shape != (samples, count) or not torch.isfinite(views).all():
        raise ModelError(
            f"views is {count}, and {shape[1]} of {shape[0]} examples are given: finite (N, {count}, D), for each of "
            f"{samples}"
        )
    return F.normalize(views, dim=-1)


def _pictures(given: torch.Tensor | None, samples: int, *, vision: bool) -> torch.Tensor | None:
    """Checked pixels (N, 3, S, S)."""
    if not vision and given is None:
        return None
    fits = given is not None and given.ndim == 4 and given.shape[:2] == (samples, 3) and torch.isfinite(given).all()
    if not vision or not fits:
        shape = "none" if given is None else str(tuple(given.shape))
        raise ModelError(f"pixels are {shape}: with vision they are finite ({samples}, 3, S, S), else there are none")
    return given


def _require_vision(tower: Tower, contexts: int, conditioned: bool, views: int, deep: int) -> None:
    """Refuse what tokens in the image tower do not go with.

    Raises:
        OptionError, ModelError: it is so.
    """
    if contexts > 1:
        raise OptionError(f"vision goes with one context, from which its tokens follow, not {contexts}")
    if conditioned or views:
        own = "conditioned" if conditioned else "views"
        raise OptionError(f"{own} reads features that vision changes with every step: leave one of them out")
    if not isinstance(tower, Detached):
        visual.image_tower(tower, deep)


class Detached:
    """In the place of a model until `PromptLearner.attach`."""

    name = "none"

    @property
    def text_fingerprint(self) -> str:
        raise ModelError("this head was restored without its model: attach it, or take FewShot.load")

    @property
    def word_width(self) -> int:
        raise ModelError("this head was restored without its model: attach it, or take FewShot.load")

    def word_vectors(self, text: str) -> torch.Tensor:
        raise ModelError("this head was restored without its model: attach it, or take FewShot.load")

    def deep_words(self, words_nW: torch.Tensor, before: int, depth: int) -> torch.Tensor:
        raise ModelError("this head was restored without its model: attach it, or take FewShot.load")

    def encode_learned(
        self, words_TnW: torch.Tensor, nouns: str | Sequence[str], before: int | None = None
    ) -> torch.Tensor:
        raise ModelError("this head was restored without its model: attach it, or take FewShot.load")
