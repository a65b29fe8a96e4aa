"""Views: parameters drawn from (seed, sample key, view index), and the renderer that teacher and student share."""

from storage.views.params import NUM_UNIFORMS, ViewParams, draw_view_params
from storage.views.random import view_uniforms
from storage.views.renderer import RENDERER_VERSION, render, view_digest

__all__ = [
    "NUM_UNIFORMS",
    "RENDERER_VERSION",
    "ViewParams",
    "draw_view_params",
    "render",
    "view_digest",
    "view_uniforms",
]
