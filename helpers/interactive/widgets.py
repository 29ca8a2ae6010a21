"""What every widget needs: whether the notebook can show it, and figures as PNG."""

import io
import os
import sys

from IPython import get_ipython
from matplotlib.figure import Figure

# What the servers of JupyterLab, nbclassic and PyCharm, VS Code, and Kaggle's editor tell a kernel.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE")


def has_front_end() -> bool:
    """Whether the notebook is open somewhere that is known to show widgets.

    Returns:
        True in JupyterLab, nbclassic, PyCharm, VS Code (here, remote or in Codespaces), Colab and
        Kaggle's editor.
    """
    shell = get_ipython()
    in_vs_code = shell is not None and "__vsc_ipynb_file__" in shell.user_ns
    told = {name: os.environ.get(name) for name in FRONT_ENDS}
    in_kaggles_batch = told["KAGGLE_KERNEL_RUN_TYPE"] == "Batch"
    in_others = "google.colab" in sys.modules or (any(told.values()) and not in_kaggles_batch)
    return in_vs_code or in_others


def as_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file, to show in a widget or on a page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    return png.getvalue()
