"""An ONNX model in onnxruntime, in a process of its own, so that a crash is an error message."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from passes.errors import RewriteError
from rewriter.onnx.runtime import child


class SessionError(RewriteError):
    """onnxruntime does not load or run a model."""


class Session:
    """An ONNX model in onnxruntime, on the CPU; a context manager, at whose end the process is gone.

    Args:
        content: the serialised model.

    Raises:
        SessionError: if onnxruntime does not load it, or dies of it.

    """

    def __init__(self, content: bytes) -> None:
        if not sys.executable:
            raise SessionError("no Python interpreter is known (sys.executable) to run onnxruntime in")
        # -P: the folder of the script is no place to import from.
        command = [sys.executable, "-P", str(Path(child.__file__))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise SessionError(f"cannot start {sys.executable} to run onnxruntime in: {error}") from error
        try:
            #: Names of the inputs and of the outputs.
            self.inputs, self.outputs = self._ask(content)
        except BaseException:
            self.close()
            raise

    def run(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        """Return the outputs, numpy arrays, for inputs by name.

        Raises:
            SessionError: if onnxruntime does not run them, or dies of it.

        """
        return self._ask(dict(feed))  # type: ignore[no-any-return]

    def _ask(self, asked: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump(asked, stdin, protocol=5)
            stdin.flush()
            done, answer = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise SessionError(f"onnxruntime ends its process ({self._end()})") from error
        if not done:
            raise SessionError(answer)
        return answer

    def _end(self) -> str:
        """Say how the process ended."""
        _, said = self._process.communicate()
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {code}"

    def close(self) -> None:
        """End the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process.poll() is None:
            process.kill()
        process.wait()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
