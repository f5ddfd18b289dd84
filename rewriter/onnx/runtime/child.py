"""Run an ONNX model in onnxruntime for another process, which survives what the runtime does to this one.

Run as a script, which imports neither torch nor this package. It reads the model from its standard input,
then inputs, and answers each with ``(True, result)`` or ``(False, message)``.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def open_session(content: bytes) -> Any:
    """Load a model on the CPU, silently."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Answer until the input ends."""
    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What the runtime prints, also from C++, is for nobody.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    session: Any = None
    while True:
        try:
            asked = pickle.load(given)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            if session is None:
                session = open_session(asked)
                answer = (
                    True,
                    (
                        [each.name for each in session.get_inputs()],
                        [each.name for each in session.get_outputs()],
                    ),
                )
            else:
                answer = (True, session.run(None, asked))
        except Exception as error:  # onnxruntime's have no common base but this
            answer = (False, " ".join(f"{type(error).__name__}: {error}".split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    main()
