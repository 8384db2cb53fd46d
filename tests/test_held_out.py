"""What `evaluate` and `promote` show of scores."""

import io

import numpy as np
import pandas as pd
from rich.console import Console

from sesttune.evaluation.scores import METRICS
from sesttune.held_out import score_table


def test_a_table_shows_cell_types_as_they_are_called() -> None:
    named = {"cell_type": ["T [naive]", "T [/x]"], "predictor": ["model", "model"]}
    scores = pd.DataFrame({**named, **{metric: [1.0, np.nan] for metric in METRICS}})
    shown = io.StringIO()
    Console(file=shown, width=120).print(score_table(scores, "cell_type"))
    assert "T [naive]" in shown.getvalue()
    assert "T [/x]" in shown.getvalue()
