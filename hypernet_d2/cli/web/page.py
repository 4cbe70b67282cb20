"""The page: a tab to look through a data set, and one to upload pictures. It needs Gradio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import gradio as gr

from .models import ExportedModel, TrainedModel
from .upload import DETECTIONS, NO_PICTURE, STAGES, run_model

if TYPE_CHECKING:  # it needs detectron2, which the upload of pictures does not
    from .explorer import Explorer

__all__ = ["build_page"]

ANY = "any"
PAGE_SIZE = 12  # images
DEFAULT_THRESHOLD = 0.5
CACHE_SECONDS = 3600  # after which the pictures that were drawn for the page are deleted
WORST_FIRST, AS_IN_SET = "most errors first", "as in the set"


def build_page(
    models: list[ExportedModel | TrainedModel], explorers: dict[str, tuple[Explorer, str]]
) -> gr.Blocks:
    """The page.

    Args:
        models: one or two, each with a column where pictures are uploaded.
        explorers: {model's name: (the set with its detections, a note on them)}; empty for none.
    """
    with gr.Blocks(
        title="HyperNet",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(CACHE_SECONDS, CACHE_SECONDS),
    ) as page:
        with gr.Tabs():
            if explorers:
                with gr.Tab("Data set", elem_id="data-set"):
                    _add_explorer(page, explorers)
            with gr.Tab("Upload", elem_id="upload"):
                _add_upload(models)
    return page


def _add_explorer(page: gr.Blocks, explorers: dict[str, tuple[Explorer, str]]) -> None:
    names = list(explorers)
    first, _ = explorers[names[0]]
    browser = Browser(explorers)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            threshold = gr.Slider(
                0, 1, DEFAULT_THRESHOLD, step=0.01, label="Score threshold", elem_id="threshold"
            )
            kind = gr.Dropdown(
                first.kinds, value=ANY, label="Kind", visible=first.labeled,
                elem_id="kind", info="of the detection or error",
            )  # fmt: skip
            classes = gr.Dropdown(
                first.data.classes, value=[], multiselect=True, label="Classes", elem_id="classes",
                info="none chosen: all",
            )  # fmt: skip
            size = gr.Dropdown(
                [(text, name) for name, text in first.size_labels.items()], value=ANY, label="Size",
                elem_id="size",
            )  # fmt: skip
            most = gr.Slider(0, 1, 1, step=0.01, label="Largest score", elem_id="most")
            order = gr.Radio(
                [WORST_FIRST, AS_IN_SET], value=WORST_FIRST if first.labeled else AS_IN_SET,
                label="Order", visible=first.labeled,
            )  # fmt: skip
        with gr.Column(scale=4):
            summary = gr.Markdown(elem_id="summary")
            gallery = gr.Gallery(
                show_label=False, columns=4, height=520, object_fit="contain", format="jpeg",
                allow_preview=False, interactive=False, buttons=[], fit_columns=False,
                elem_id="gallery",
            )  # fmt: skip
            with gr.Row():
                previous = gr.Button("Previous images", size="sm")
                following = gr.Button("Next images", size="sm", elem_id="next")
            gr.Markdown(browser.legend(first))
            title = gr.Markdown(elem_id="detail-title")
            detail = gr.Image(
                show_label=False, interactive=False, format="jpeg", elem_id="detail",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
    start, chosen = gr.State(0), gr.State(None)  # places in the choice, and in the set
    filters = [model, threshold, most, classes, size, kind, order]
    grid = [summary, gallery, start]
    one = [title, detail]
    for step, button in ((-PAGE_SIZE, previous), (PAGE_SIZE, following)):
        button.click(partial(browser.turn, step), [*filters, start], grid, show_progress="hidden")
    gr.on(
        [page.load, *(component.change for component in filters)],
        browser.show,
        [*filters, chosen],
        [*grid, *one, chosen],
        trigger_mode="always_last",  # of the values that a slider takes while it is moved
        show_progress="hidden",
    )
    gallery.select(browser.select, [*filters, start], [*one, chosen], show_progress="hidden")


class Browser:
    """What the data set's tab shows, from the values of its filters.

    Clients send numbers and choices only, never paths, so that no other file can be asked for.
    """

    def __init__(self, explorers: dict[str, tuple[Explorer, str]]):
        self.explorers = explorers

    def _choose(self, model, threshold, most, classes, size, kind, order):
        from .explorer import Filters

        explorer, note = self.explorers[model]
        filters = Filters(threshold, most, tuple(classes), size, kind)
        return explorer, filters, explorer.choose(filters, order == WORST_FIRST), note

    def show(self, *values):
        """The first images, and the chosen one or else the first of them in large."""
        *filter_values, chosen = values
        explorer, filters, choice, _ = self._choose(*filter_values)
        if chosen not in choice.images:
            chosen = choice.images[0] if choice.images else None
        return *self._grid(0, *filter_values), *_detail(explorer, choice, chosen), chosen

    def turn(self, step: int, *values):
        """The images ``step`` further on."""
        *filter_values, start = values
        return self._grid(start + step, *filter_values)

    def select(self, event: gr.SelectData, *values):
        """The image that is clicked, in large."""
        *filter_values, start = values
        explorer, _, choice, _ = self._choose(*filter_values)
        shown = choice.images[start : start + PAGE_SIZE]
        chosen = shown[event.index] if 0 <= event.index < len(shown) else None
        return *_detail(explorer, choice, chosen), chosen

    def _grid(self, start: int, *filter_values):
        explorer, filters, choice, note = self._choose(*filter_values)
        last = max(0, len(choice.images) - 1) // PAGE_SIZE * PAGE_SIZE
        start = min(max(start, 0), last)
        shown = choice.images[start : start + PAGE_SIZE]
        pictures = [(explorer.thumbnail(i, choice), explorer.caption(i, choice)) for i in shown]
        text = explorer.summary(filters, choice)
        if shown:
            text += f" Shown: {start + 1} to {start + len(shown)}."
        return f"{text} {note}", pictures, start

    def legend(self, explorer: Explorer) -> str:
        from .explorer import COLORS

        if not explorer.labeled:
            return ""
        words = [
            f'<span style="color: rgb{COLORS[kind]}">&#9632;</span> {kind}'
            for kind in explorer.kinds[1:]
        ]
        return " &nbsp; ".join(words)


def _detail(explorer: Explorer, choice, image: int | None):
    if image is None:
        return "No image has what the filters choose.", None
    name, _, counts = explorer.caption(image, choice).rpartition(": ")
    # As code, since the characters of a file's name may have a meaning in Markdown.
    return f"**`{name}`: {counts}**", explorer.detail(image, choice)


def _add_upload(models: list[ExportedModel | TrainedModel]) -> None:
    least = max(model.least_score for model in models)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            # The path, so that the file is read as everywhere in this package.
            image = gr.Image(
                label="Picture", type="filepath", image_mode=None,
                sources=["upload", "clipboard"], elem_id="picture",
            )  # fmt: skip
            threshold = gr.Slider(
                least, 1, max(least, DEFAULT_THRESHOLD), step=0.01, label="Score threshold",
                elem_id="upload-threshold",
            )  # fmt: skip
            tile = gr.Number(
                0, label="Tile, pixels", precision=0, minimum=0, elem_id="tile",
                info="for small objects in large pictures; 0: the whole picture at once",
            )  # fmt: skip
            overlap = gr.Number(
                0, label="Overlap of tiles, pixels", precision=0, minimum=0, elem_id="overlap",
                info="at least the side of most objects",
            )  # fmt: skip
        with gr.Column(scale=4), gr.Row():
            for index, model in enumerate(models):
                _add_model(index, model, [image, threshold, tile, overlap])


def _add_model(index: int, model: ExportedModel | TrainedModel, inputs: list) -> None:
    """Add the column of one model, and the events that update it."""
    views = {"Detections": DETECTIONS}
    if isinstance(model, ExportedModel):
        views.update(STAGES)
    with gr.Column():
        gr.Markdown(f"### {model.name}\n{model.source}")
        outputs = [gr.Markdown(NO_PICTURE, elem_id=f"count-{index}")]
        with gr.Tabs():
            for view, caption in views.items():
                with gr.Tab(view):
                    picture = gr.Image(
                        show_label=False, interactive=False, format="png",
                        buttons=["download", "fullscreen"],
                    )  # fmt: skip
                    outputs.append(picture)
                    gr.Markdown(caption)
    gr.on(
        [component.change for component in inputs],
        partial(run_model, model),
        inputs,
        outputs,
        trigger_mode="always_last",
        show_progress="hidden",
    )
