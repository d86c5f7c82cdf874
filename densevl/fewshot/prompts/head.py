"""Head "prompt": contexts around the names of classes are learned on the examples, and then serve any words.

CoOp (Zhou et al., IJCV 2022) with several contexts (ECO), a tie to the words as they were (KgCoOp, Yao et al., CVPR
2023), and sessions (CPE-CLIP, D'Alessandro et al., 2023). All rows are said with the same contexts, those of classes
without examples and of background words too. With `conditioned` each image has contexts of its own (CoCoOp), and the
rows that follow. Shape letters: N samples, R rows, E joint space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, ModelError, OptionError
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.prompts.conditioned import Conditioned, Net, Plan, learn
from densevl.fewshot.prompts.contexts import Contexts, Spoken, Tower, joined, size, unit_prompts
from densevl.fewshot.prompts.fitting import Fit, Progress, Schedule
from densevl.fewshot.prompts.training import Run, Task
from densevl.fewshot.settings import COUNT, SEED, Rule
from densevl.vocabulary.learned_templates import NET, LearnedTemplate, from_state, to_state
from densevl.vocabulary.prompts import Prompt
from densevl.weights import below

STARTS = ("words", "random")


class PromptLearner(Head):
    """Rows of words in learned contexts; `text` are these rows after `fit`.

    Attributes:
        templates: the learned ones, or those it was given, where they are better; `TextClassifier` takes both.
        conditioned: contexts that depend on the image, and the net that shifts them; None where there are none.
    """

    name: ClassVar[str] = "prompt"
    parts: ClassVar[tuple[str, ...]] = ("tower", "templates", "checkpoint", "progress")
    rules: ClassVar[Mapping[str, Rule]] = {
        "contexts": COUNT,
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
    }
    adds: ClassVar[bool] = True

    def __init__(
        self,
        tower: Tower | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        *,
        contexts: int = 4,
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
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Settings.

        Args:
            tower: the model whose text tower reads them. templates: what the rows of words were made with.
            contexts: how many are averaged. start: "words", at templates, or "random". length: words of those that
                start at random. tie: to the rows of words, 0 or more. steps: of Adam on all examples, at most.
            rate: of Adam, as a share of the root mean square of words' numbers.
            folds: in which examples are judged by the others, to find the best number of steps, which may be none; 1
                takes all. seed: of random words.
            conditioned: a small net shifts the contexts by the vector of the image that is judged (CoCoOp); folds then
                choose between all steps and none. batch: images of one of its steps.
            views: other looks at each example that it is also learned from; see `fit`. 0 for none.
            deep: blocks of the text tower in which the words before names are learned: 1 as words alone, more also as
                the hidden states at the inputs of further blocks (the text side of MaPLe, CVPR 2023).
            checkpoint: a file to write while fitting, from which a killed fit goes on; with `conditioned` it begins
                anew. progress: called with steps done and all.

        Raises:
            OptionError: no tower that reads vectors as words, or a setting out of range.
            ModelError: it is not so deep.
        """
        whole = {"contexts": contexts, "length": length, "steps": steps, "folds": folds, "batch": batch}
        whole |= {"views": views, "deep": deep}
        super().__init__(**whole, start=start, tie=tie, rate=rate, seed=seed, conditioned=conditioned)
        if tower is None or not hasattr(tower, "encode_learned"):
            name = f"model '{tower.name}'" if tower is not None else "head 'prompt'"
            raise OptionError(f"{name} has no text tower to learn words for; take a CLIP model")
        if conditioned and deep > 1:
            raise OptionError("conditioned shifts words, and not the hidden states of deep ones: leave one of them out")
        self._tower, self.templates = tower, tuple(templates)
        self.conditioned: Conditioned | None = None
        self._views: torch.Tensor | None = None
        if deep > 1 and not isinstance(tower, Detached):
            Contexts.drawn(tower, 1, 1, seed).deep(tower, deep)  # refused before the first example
        self._given, self._hooks = self.templates, (checkpoint, progress)
        self._settings: dict[str, Any] = {**whole, "start": start, "tie": tie, "rate": rate, "seed": seed}
        self._settings["conditioned"] = conditioned

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
    ) -> Self:
        """Learn from examples; see `Head.fit`.

        Args:
            strings: the words of each row of `text_CD`, which is their mean. views: (N, V, D) float, V other looks at
                each example, as the setting says: each has an equal part of the example's weight, and with
                `conditioned` all looks at one example are to have the same rows (GOPro).

        Raises:
            LabelError: none, or images and vectors among them.
            ModelError: more words than the tower reads, or views of another shape, or that are not finite.
        """
        self._views = _looks(views, len(features_ND), self._settings["views"])
        self._strings = _checked(strings, len(text_CD))
        self.templates, self.conditioned = self._given, None
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
        own, progress = self._settings, self._hooks[1]
        rate = own["rate"] * size(self._tower, task.spoken.strings)
        plan = Plan(own["steps"], own["batch"], rate, own["folds"], own["seed"])
        net = Net.drawn(self.text.shape[1], self._tower.word_width, own["seed"])
        self.conditioned, self.found = learn(self._tower, task, Conditioned(self._begun(), net), plan, progress)

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
            ModelError: contexts depend on the image.
        """
        if self.conditioned is not None:
            raise ModelError(
                "contexts depend on the image here, so that there are no templates or rows for all images; fit with "
                "conditioned=false for them"
            )

    def _require_adding(self) -> None:
        if self._settings["conditioned"] or self._settings["views"]:
            own = "contexts that depend on the image" if self._settings["conditioned"] else "views"
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
        fixed = (spoken, self.before[among], self.scale, self._settings["tie"], views)
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
