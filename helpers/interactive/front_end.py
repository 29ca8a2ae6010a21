"""For widgets, which need a kernel and a front end that shows them."""

import io
import os
import sys

from matplotlib.figure import Figure


def has_front_end() -> bool:
    """Whether the notebook is open somewhere that can show widgets: Jupyter's server, VS Code or Colab started its kernel."""
    return "google.colab" in sys.modules or any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID"))


def as_png(figure: Figure) -> bytes:
    """What a widget, or a page, shows of a figure."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    return png.getvalue()
