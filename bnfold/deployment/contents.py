"""What a folder holds: the model, and what goes with it where something reads that."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bnfold.deployment import checking
from bnfold.deployment.checking import Check
from bnfold.deployment.files import MODEL, copy_model, put, template
from bnfold.deployment.settings import LEVELS, ORT, Settings
from bnfold.deployment.trial import Trial
from bnfold.equivalence.settings import Progress
from bnfold.errors import ModelError
from bnfold.runtime import CannotRun, save_operators, save_ort_format
from bnfold.source import Source


class Contents:
    """Fills a folder with the model and what goes with it, and runs it from there."""

    def __init__(self, source: Source, settings: Settings, trial: Trial, seed: int, say: Progress) -> None:
        self.source, self.settings, self.trial, self.seed, self.say = source, settings, trial, seed, say
        self.files: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.check = Check(trial.not_run)

    def plain(self, folder: Path) -> None:
        """For ONNX Runtime's backend: the model alone."""
        self._copy(folder)
        self._finish(folder, MODEL)

    def python(self, folder: Path) -> None:
        """For the Python backend: with a program that reads the settings."""
        self._copy(folder)
        put(folder / "model.py", template("model.py"))
        self._program(folder, MODEL)

    def bundle(self, folder: Path) -> None:
        """A folder that stands for itself."""
        if self.settings.target != ORT:
            self._copy(folder)
            self._program(folder, MODEL)
            return
        self.say("converting")
        model = folder / "model.ort"
        with tempfile.TemporaryDirectory(prefix="bnfold-ort-") as scratch:
            given = self.source.path
            if given is None:
                copy_model(self.source, Path(scratch))
                given = Path(scratch, MODEL)
            try:
                save_ort_format(given, model, LEVELS[self.settings.level])
            except CannotRun as error:
                raise ModelError(f"{self.source.label}: {error}") from error
        save_operators(model, folder / "required_operators.config")
        self._program(folder, "model.ort")

    def _copy(self, folder: Path) -> None:
        self.say("copying")
        copy_model(self.source, folder)

    def _program(self, folder: Path, model: str) -> None:
        put(folder / "serve.py", template("serve.py"))
        put(folder / "settings.json", json.dumps(self.settings.to_json(model), indent=1) + "\n")
        self._finish(folder, model)

    def _finish(self, folder: Path, model: str) -> None:
        self.files = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
        if self.trial.session is None:
            return
        target = self.settings.target
        self.check = checking.check(self.source, folder / model, self.settings, self.trial.feeds, self.seed, self.say)
        problem = checking.not_here(target)
        if problem is not None:
            self.notes.append(f"the settings of {target} were not tried here: {problem}")
