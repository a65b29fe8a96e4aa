"""Cross entropy against labels that were drawn at random, so that its gradient is right on average."""

from __future__ import annotations

from torch import Tensor

from student_training.losses.soft_labels import student_log_probs


def drawn_cross_entropy(student_logits: Tensor, *, class_ids: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum of t_i log softmax(z / T)_i over drawn classes, where E[t_i] = p_i of the teacher at the same temperature T.

    The gradient in z, (sum(t) softmax(z / T) - t) / T, is linear in t, so its expected value is that of the dense cross entropy.
    Hence nothing is normalised here: weights that sum to 1 need it not, and of others it would bias the gradient. Nor are they
    brought to another temperature: the expected value of a power of t is not that power of p.

    Args:
        student_logits: z [B, C].
        class_ids: integer [B, K]; an entry of weight 0 is unused and may repeat another.
        weights: t [B, K], at temperature T; no gradient flows to them.
        temperature: T.

    Returns:
        [B], in nats, float32 or wider, without a factor of T^2.

    References:
        Anshumann et al., Sparse Logit Sampling, https://arxiv.org/abs/2503.16870
    """
    log_q = student_log_probs(student_logits, temperature=temperature)
    return -(weights.detach().to(log_q.dtype) * log_q.gather(1, class_ids.long())).sum(dim=1)
