"""Teachers from transformers: any image classifier, by hub id or local folder."""

from __future__ import annotations

from typing import Any

from pipelines.teachers.assembly import assemble_teacher
from pipelines.teachers.attention_capture import install
from pipelines.teachers.base import Teacher
from pipelines.teachers.picture_networks import TransformersPictureNetwork
from pipelines.teachers.text_networks import last_linear
from pipelines.teachers.transformers_loading import Arguments, architecture_of, cannot_load, class_names, load_module
from pipelines.teachers.transformers_preprocessing import transformers_preprocessing
from storage.config import TeacherConfig

_NEEDS = "preprocessor_config.json"


def load_transformers_teacher(config: TeacherConfig) -> Teacher:
    """Load an image classifier and its image processor; `config.checkpoint` takes the place of the folder's own weights.

    `kwargs` override entries of the model's config, or say where its files come from (`revision`, `subfolder`, ...).

    Raises:
        TeacherError: nothing to load under the name, weights that are partial or do not fit, preprocessing that cannot be
            expressed.
    """
    from transformers import AutoModelForImageClassification

    arguments = Arguments.of(config)
    module = load_module(config, auto_class=AutoModelForImageClassification, arguments=arguments, needs=_NEEDS)
    install(module, name=config.name)
    return assemble_teacher(
        module,
        config=config,
        architecture=architecture_of(module, name=config.name, arguments=arguments),
        preprocessing=transformers_preprocessing(_load_processor(config.name, arguments=arguments), name=config.name),
        class_names=class_names(module),
        network=lambda inputs: module(pixel_values=inputs, return_dict=True).logits,
        vector_network=TransformersPictureNetwork(
            module=module, head_layer=last_linear(module, num_outputs=int(module.config.num_labels))
        ),
    )


def _load_processor(name: str, *, arguments: Arguments) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name, **arguments.transport)
    except Exception as error:
        raise cannot_load("image processor", name, error, needs=_NEEDS) from error
