"""The rows that all runs are trained on. Workers import this module, so that it needs NumPy alone."""

from typing import Any

import numpy as np

ROWS = 26
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5]]) + np.float32(0.1) * np.sin(X[:, :1])


class Source:
    """Rows for grain."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class NamedSource(Source):
    """The same, with a `repr` that another process has, too."""

    def __repr__(self) -> str:
        return "NamedSource()"
