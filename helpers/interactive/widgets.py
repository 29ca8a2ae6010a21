"""What every widget needs: whether the notebook can show it, and figures as PNG."""

import io
import os
import sys

from matplotlib.figure import Figure


def has_front_end() -> bool:
    """Whether the notebook is open somewhere that can show widgets.

    Returns:
        True if Jupyter's server, VS Code or Colab started the kernel.
    """
    variables = ("JPY_SESSION_NAME", "VSCODE_PID")
    return "google.colab" in sys.modules or any(name in os.environ for name in variables)


def as_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file, to show in a widget or on a page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    return png.getvalue()
