"""Whether a target, a view and a student of texts can serve a term over tokens; see `student_training.terms.checks`."""

from __future__ import annotations

from storage.alignment import why_one_token_off
from storage.config.terms import AttentionTerm, SoftLabelsTerm
from storage.errors import ConfigError
from storage.heads import HeadSpec
from storage.specs import HiddenStatesSpec
from student_training.terms.checks import HEADS_OF_POSITIONS, require_classes, require_classifier
from student_training.terms.interface import StudentShape
from student_training.terms.rows import RowSet


def check_head_labels(
    term: SoftLabelsTerm,
    *,
    spec: HiddenStatesSpec,
    head: HeadSpec | None,
    teacher_kind: str | None,
    shape: StudentShape,
    masks: bool,
) -> RowSet:
    """Return the rows whose logits a kept head gives.

    Args:
        teacher_kind: of the teacher whose head it is; None: not known.

    Raises:
        ConfigError: no head, or rows or classes that student or view do not have.
    """
    if head is None:
        raise ConfigError(
            "the target holds hidden states without the teacher's head, so that no logits can be made of them; label with head: "
            "true, or name a target of soft labels"
        )
    if term.loss == "cross_entropy":
        raise ConfigError("loss cross_entropy is for labels that were drawn at random; logits of a head take kl or reverse_kl")
    row_set: RowSet
    if head.reads == "first":
        require_classifier(shape)
        if term.positions is not None:
            raise ConfigError("positions are of language models; this head reads one token a sequence, so drop positions")
        row_set = "view"
    else:
        row_set = term.positions or ("next" if shape.kind == "causal_lm" else "masked" if masks else "all")
        if shape.kind != HEADS_OF_POSITIONS[row_set]:
            raise ConfigError(
                f"positions {row_set} are predicted by a {HEADS_OF_POSITIONS[row_set]}; the student is a {shape.kind}. Change "
                "positions, or training.student.head"
            )
        why_off = why_one_token_off(teacher_kind or "", positions=row_set)
        if why_off is not None:
            raise ConfigError(
                f"the head is of another kind of language model than the student: {why_off}, so that every label would be one "
                f"token off; set training.student.head: {teacher_kind}, or use a term of hidden_states"
            )
        if row_set == "masked" and not masks:
            raise ConfigError("positions are masked, and the views mask nothing; use views.kind: masked_tokens")
        if spec.tokens != "all":
            raise ConfigError(
                f"the head reads every token, and the target holds {spec.tokens} ones; label hidden states with tokens: all"
            )
    if row_set == "view" or head.num_outputs < shape.num_classes:
        require_classes(shape, num_classes=head.num_outputs)
    return row_set


def hard_token_rows(shape: StudentShape, *, masks: bool) -> RowSet:
    """Return the rows at which a language model predicts the text's own tokens.

    Raises:
        ConfigError: it does not, or the view gives them away.
    """
    if shape.kind == "causal_lm":
        if masks:
            raise ConfigError("a causal_lm would read masked tokens as text; use views.kind: tokens")
        return "next"
    if shape.kind == "sequence_classifier":
        raise ConfigError(
            "a sequence_classifier predicts no tokens; use hard_label, or training.student.head: masked_lm or causal_lm"
        )
    if not masks:
        raise ConfigError("the views mask nothing, so there is no token to predict; use views.kind: masked_tokens")
    return "masked"


def check_windows(term: AttentionTerm, *, shape: StudentShape, max_tokens: int) -> None:
    """Check that tokens of the student's layers see all of a sequence, as those of the maps they are compared with do.

    Args:
        max_tokens: of the longest sequence.

    Raises:
        ConfigError: a layer's window is shorter.
    """
    for _, layer in term.layers:
        window = shape.attention_windows[layer - 1] if shape.attention_windows else None
        if window is not None and window < max_tokens:
            raise ConfigError(
                f"a token of the student's layer {layer} sees only those less than {window} places away, and sequences have up "
                f"to {max_tokens} tokens: its attention maps are not those rebuilt from its queries and keys; compare another "
                "layer, set the student's window (sliding_window, local_attention) larger, or use a term of relations"
            )
