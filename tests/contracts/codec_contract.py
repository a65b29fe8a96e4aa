"""What every codec of soft labels must do. A test class inherits `CodecContract` and says what its codec promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import codecs
from storage.codecs import RankedLabels
from storage.codecs.columns import Bytes
from storage.codecs.divergence import codec_kl
from storage.errors import FormatError
from storage.soft_labels import SoftLabels
from storage.specs import CodecSpec, SoftLabelsSpec
from tests.storage.rows import SHAPES, make_rows

# Around every width that ids, counts and steps may take, and the sizes of ImageNet-1k, ImageNet-22k and a text vocabulary.
NUM_CLASSES = (1, 2, 10, 255, 256, 257, 1000, 1024, 65535, 65536, 65537, 21841, 151936)
MANY_CLASSES = (2**24, 2**24 + 1, 2**24 + 3, 2**31, 2**31 + 1, 2**31 + 5, 2**32)


def examples(count: int) -> settings:
    # Hypothesis objects to one property that runs for several classes; here that is what a contract is.
    return settings(max_examples=count, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow])


def rank(rows: RankedLabels, **changes) -> RankedLabels:
    return replace(rows, **{name: np.asarray(value) for name, value in changes.items()})


def check_rows(found: SoftLabels, *, num_rows: int, spec: SoftLabelsSpec) -> None:
    """Fail if rows are not distributions in the promised dtypes, with harmless padding."""
    entries = found.probs.shape[1]
    assert len(found) == num_rows
    assert found.num_classes == spec.num_classes
    assert found.class_ids.shape == (num_rows, entries)
    assert entries <= spec.max_entries
    assert found.class_ids.dtype == (np.int32 if spec.num_classes <= 2**31 else np.int64)
    assert found.probs.dtype == found.rest.dtype == np.float32
    assert found.rest.shape == (num_rows,)
    for values in (found.probs, found.rest):
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    sums = found.probs.sum(axis=1, dtype=np.float64) + found.rest
    assert np.abs(sums - 1).max(initial=0) <= 1e-6
    assert ((found.class_ids >= 0) & (found.class_ids < spec.num_classes)).all()


def check_streams_are_needed(
    streams: Mapping[str, Bytes], *, name: str, num_rows: int, spec: SoftLabelsSpec, may_be_missing: bool = False
) -> None:
    """Fail if a block is read whose stream `name` is shorter, longer or missing, or that announces a row too many."""
    for broken in (streams[name][:-1], np.append(streams[name], np.uint8(1))):
        if len(broken) == len(streams[name]):
            continue
        with pytest.raises(FormatError):
            codecs.decode({**streams, name: broken}, num_rows=num_rows, spec=spec)
    if not may_be_missing:
        with pytest.raises(FormatError):
            codecs.decode({key: value for key, value in streams.items() if key != name}, num_rows=num_rows, spec=spec)
    with pytest.raises(FormatError):
        codecs.decode(streams, num_rows=num_rows + 1, spec=spec)


class CodecContract(ABC):
    """`codec` and `kl_bound` describe a codec."""

    @abstractmethod
    def codecs(self) -> st.SearchStrategy[CodecSpec]:
        """Every form of the codec."""

    @abstractmethod
    def finest(self) -> CodecSpec:
        """The form that loses least."""

    @abstractmethod
    def kl_bound(self, spec: SoftLabelsSpec) -> float:
        """The most that encoding may add to the divergence of any row, in nats."""

    @abstractmethod
    def check_selection(self, rows: RankedLabels, found: SoftLabels, *, spec: SoftLabelsSpec) -> None:
        """Fail if the decoded rows keep other classes, or keep them in another order, than the codec promises."""

    def may_be_missing(self, name: str) -> bool:
        """Whether a block without this stream may be another valid block."""
        return False

    def draw_case(
        self, data: st.DataObject, *, num_classes: int, entries: int | None = None
    ) -> tuple[RankedLabels, SoftLabelsSpec]:
        most = min(num_classes, 24)
        k = entries or data.draw(st.sampled_from([1, most]) | st.integers(1, most), label="k")
        codec = data.draw(self.codecs(), label="codec")
        shape = data.draw(st.sampled_from(SHAPES), label="shape")
        num_rows = data.draw(st.integers(0, 9), label="rows")
        seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
        rows = make_rows(np.random.default_rng(seed), num_rows=num_rows, num_classes=num_classes, entries=k, shape=shape)
        return rows, SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec)

    def check_round_trip(self, rows: RankedLabels, spec: SoftLabelsSpec) -> SoftLabels:
        streams = codecs.encode(rows, spec=spec)
        limits = codecs.stream_lengths(len(rows), spec=spec)
        assert all(stream.dtype == np.uint8 and len(stream) <= limits[name] for name, stream in streams.items())
        found = codecs.decode(streams, num_rows=len(rows), spec=spec)
        check_rows(found, num_rows=len(rows), spec=spec)
        self.check_selection(rows, found, spec=spec)
        kl = codec_kl(rows, found)
        assert kl.shape == (len(rows),)
        assert kl.max(initial=0) <= self.kl_bound(spec)
        again = codecs.encode(rows, spec=spec)
        assert list(again) == list(streams)
        assert all(np.array_equal(again[name], streams[name]) for name in streams)
        return found

    @examples(100)
    @given(st.data())
    def test_rows_come_back(self, data):
        num_classes = data.draw(st.sampled_from(NUM_CLASSES) | st.integers(1, 3000), label="classes")
        self.check_round_trip(*self.draw_case(data, num_classes=num_classes))

    @examples(100)
    @given(st.data(), st.sampled_from(MANY_CLASSES))
    def test_rows_over_very_many_classes_come_back(self, data, num_classes):
        self.check_round_trip(*self.draw_case(data, num_classes=num_classes))

    @examples(30)
    @given(st.data(), st.sampled_from([1, 2, 10, 255, 256, 257, 1000, 1024]))
    def test_all_classes_and_no_rest_come_back(self, data, num_classes):
        rows, spec = self.draw_case(data, num_classes=num_classes, entries=num_classes)
        found = self.check_round_trip(rows, spec)
        assert (rows.log_rest == -np.inf).all()
        assert found.probs.sum(axis=1) == pytest.approx(1 - found.rest, abs=1e-5)

    @pytest.mark.parametrize("num_classes", [65535, 65537, 2**31 + 5])
    def test_the_largest_k(self, num_classes):
        rng = np.random.default_rng(0)
        rows = make_rows(rng, num_rows=2, num_classes=num_classes, entries=65535, shape="peaked")
        self.check_round_trip(rows, SoftLabelsSpec(num_classes=num_classes, k=65535, codec=self.finest()))

    @examples(40)
    @given(st.data())
    def test_a_row_does_not_depend_on_its_neighbours(self, data):
        rows, spec = self.draw_case(data, num_classes=1000)
        together = codecs.decode(codecs.encode(rows, spec=spec), num_rows=len(rows), spec=spec)
        for row in range(len(rows)):
            alone = RankedLabels(
                class_ids=rows.class_ids[row : row + 1],
                log_probs=rows.log_probs[row : row + 1],
                log_rest=rows.log_rest[row : row + 1],
            )
            found = codecs.decode(codecs.encode(alone, spec=spec), num_rows=1, spec=spec)
            assert np.array_equal(found.densify()[0], together.take(np.array([row])).densify()[0])

    @examples(40)
    @given(st.data())
    def test_streams_of_another_length_or_name_are_refused(self, data):
        rows, spec = self.draw_case(data, num_classes=data.draw(st.sampled_from([2, 1000, 70_000])))
        streams = codecs.encode(rows, spec=spec)
        name = data.draw(st.sampled_from(sorted(streams)))
        check_streams_are_needed(streams, name=name, num_rows=len(rows), spec=spec, may_be_missing=self.may_be_missing(name))

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"log_probs": np.float32([[np.nan, -3], [-1, -2]])}, "NaN"),
            ({"log_rest": np.float32([np.nan, -1])}, "NaN"),
            ({"log_probs": np.float32([[0.5, -3], [-1, -2]])}, "above 0"),
            ({"log_probs": np.float32([[np.inf, -3], [-1, -2]])}, "above 0"),
            ({"log_rest": np.float32([0.5, -1])}, "above 0"),
            ({"log_probs": np.float32([[-3, -0.5], [-1, -2]])}, "rise"),
            ({"class_ids": np.uint32([[0, 1], [2, 7]])}, "class id 7 is outside the 7 classes"),
            ({"log_probs": np.float32([[-0.1, -0.2], [-1, -2]])}, "sum to"),
            ({"log_rest": np.float32([-np.inf, -np.inf])}, "sum to"),
            ({"log_probs": np.float32([[-9, -9], [-9, -9]]), "log_rest": np.float32([-9, -9])}, "sum to"),
        ],
    )
    def test_what_is_not_a_distribution_is_refused(self, changes, problem):
        probs = np.float64([[0.6, 0.3], [0.5, 0.2]])
        rows = RankedLabels(
            class_ids=np.uint32([[3, 1], [6, 0]]),
            log_probs=np.log(probs).astype(np.float32),
            log_rest=np.log(1 - probs.sum(axis=1)).astype(np.float32),
        )
        spec = SoftLabelsSpec(num_classes=7, k=2, codec=self.finest())
        codecs.encode(rows, spec=spec)
        with pytest.raises(FormatError, match=problem):
            codecs.encode(rank(rows, **changes), spec=spec)

    def test_rows_narrower_or_wider_than_the_spec_are_refused(self):
        for entries in (2, 4):
            rows = make_rows(np.random.default_rng(0), num_rows=3, num_classes=9, entries=entries, shape="peaked")
            with pytest.raises(FormatError, match=f"{entries} classes a row"):
                codecs.encode(rows, spec=SoftLabelsSpec(num_classes=9, k=3, codec=self.finest()))

    def test_rounding_above_zero_is_not_a_positive_log_probability(self):
        rows = RankedLabels(class_ids=np.uint32([[0]]), log_probs=np.float32([[1e-6]]), log_rest=np.float32([-np.inf]))
        spec = SoftLabelsSpec(num_classes=3, k=1, codec=self.finest())
        found = codecs.decode(codecs.encode(rows, spec=spec), num_rows=1, spec=spec)
        assert found.probs.tolist() == [[1.0]]
        assert found.rest.tolist() == [0.0]
