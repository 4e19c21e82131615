"""The text reports, from results made by hand: what must be said, and what must never be hidden."""

import io
from dataclasses import replace
from typing import Any

import pytest

from bnfold import report
from bnfold.api import Affine, Count, Explained, Facts, Optimized
from bnfold.benchmark import Bench, BenchRow, Compared, Memory, Timing
from bnfold.certificate import Certificate
from bnfold.equivalence.check import Deviation, OutputCheck
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT, EQUIVALENT, NoiseCheck, RuntimeCheck, Verification
from bnfold.placement import PlacementVerdict
from bnfold.reasons import CODES, Reason

CHECK = OutputCheck(
    "logits", "float32", (3, 10), 0, True, ratio=1.5, k_needed=1.25,
    before=Deviation(2e-7, 1e-7), after=Deviation(3e-7, 1.1e-7),
)  # fmt: skip
PLACED = PlacementVerdict("CPUExecutionProvider", True, (), ())
NODES = (
    {"op": "Conv", "provider": "CPUExecutionProvider", "nodes": 1200},
    {"op": "Shape", "provider": "OtherProvider", "nodes": 1},
)
RUN = RuntimeCheck("cpu", True, (), {"off": (CHECK,), "on": (CHECK,)}, PLACED, NODES)
VERIFIED = Verification(
    EQUIVALENT, (), (), ({"name": "x", "type": "float32", "shape": [3, 3, 8, 9]},), 2, 0, False,
    NoiseCheck("float64", "cpu", 8.0, True, (CHECK,)), (RUN,), 1.25,
)  # fmt: skip
FACTS = Facts("net.onnx", "net.folded.onnx", 8, 17, "pytorch 2.13.0", Count(9, 7), Count(4_500_000, 4_400_000))
PADDED = Reason("padded-shift", "zeros pad it", "conv_9", "pad with the shift", (0, 1))


def bn(number: int) -> Affine:
    return Affine(f"bn_{number}", "BatchNormalization", "folded", "pull", (f"conv_{number}",), ("Conv",))


def kept(name: str = "bn_9", reason: Reason = PADDED) -> Affine:
    return Affine(name, "BatchNormalization", "kept", reasons=(reason,))


def result(*affines: Affine, **changes: Any) -> Optimized:
    norms = [affine for affine in affines if affine.op == "BatchNormalization"]
    left = sum(affine.status == "kept" for affine in norms)
    whole = Optimized(
        FACTS, Count(len(norms), left), affines, (), {"solve": 0.5, "verify": 1.0}, (), Certificate(12, 6, 3), VERIFIED
    )
    return replace(whole, **changes)


def text(lines: list[report.Line]) -> str:
    """As it looks in a pipe."""
    file = io.StringIO()
    report.show(lines, report.console(file))
    return file.getvalue()


def flat(lines: list[report.Line]) -> str:
    return " ".join(text(lines).split())


def test_the_summary_has_counts_size_error_proof_and_time() -> None:
    said = flat(report.optimized(result(bn(1), bn(2))))
    assert said.startswith("net.onnx -> net.folded.onnx (opset 17, IR 8, by pytorch 2.13.0)")
    assert "BatchNormalization 2 -> 0" in said
    assert "nodes 9 -> 7" in said
    assert "size 4.5 MB -> 4.4 MB" in said
    assert "error to float64 2.00e-07 -> 3.00e-07 (1.50x, largest; 1.2 times the model's own noise, 8 allowed)" in said
    assert (
        "verified cpu, optimisations off and on: 1,200 nodes on CPUExecutionProvider, 1 node on OtherProvider" in said
    )
    assert "certificate holds: 12 nodes re-proved, 6 constants exact" in said
    assert "time 1.5 s (solve 0.5, verify 1.0)" in said
    assert "kept" not in said


def test_few_folds_are_listed_one_by_one() -> None:
    said = text(report.optimized(result(bn(1), bn(2))))
    assert "  bn_1  BatchNormalization: pull into conv_1\n" in said


def test_many_folds_are_grouped_and_verbose_lists_them() -> None:
    many = result(*map(bn, range(69)), Affine("mul_1", "Mul", "folded", "pull", ("conv_1",), ("Conv",)))
    said = text(report.optimized(many))
    assert "  69 of 69 BatchNormalization folded into 69 Conv\n  1 of 1 Mul folded into 1 Conv\n" in said
    assert "scale and shift     1 -> 0  (1 Mul)" in said
    assert "bn_7 " not in said
    assert "bn_68  BatchNormalization: pull into conv_68\n" in text(report.optimized(many, verbose=True))


def test_a_shared_target_counts_once_and_every_kind_is_named() -> None:
    wide = Affine("bn_0", "BatchNormalization", "folded", "push", ("conv_1", "fc"), ("Conv", "Gemm"))
    said = text(report.optimized(result(*map(bn, range(1, 20)), wide, kept())))
    assert "  20 of 21 BatchNormalization folded into 19 Conv + 1 Gemm\n" in said


def test_kept_ones_have_place_channels_and_key() -> None:
    said = text(report.optimized(result(*map(bn, range(40)), *(kept(f"bn_{n}") for n in range(40, 52)))))
    assert "kept: 12\n" in said
    assert (
        said.count(
            "BatchNormalization  padded-shift at conv_9: zeros pad it (channels 0, 1); to unlock: pad with the shift\n"
        )
        == 12
    )


def test_a_reason_shows_three_channels_with_their_values_and_what_left() -> None:
    reason = Reason(
        "negative-scale", "no", "relu", "be positive", (3, 5, 8, 9), (-0.125, -2, -1e-9, -1), ("bn_1", "bn_2")
    )
    said = text(report.explained(result(kept(reason=reason))))
    assert "relu: no (channel 3: -0.125, 5: -2, 8: -1e-09, ...), because bn_1 and bn_2 left; to unlock: be posi" in said


def many_kept() -> Optimized:
    at_home = [kept(f"bn_{n}", Reason("training-mode", "batch statistics", f"bn_{n}", "export it")) for n in range(3)]
    rivals = [kept(f"bn_{n}", replace(PADDED, text=f"zeros pad {n}", because=("bn_99",))) for n in range(3, 13)]
    return result(*at_home, *rivals, kept("bn_13"))


def test_more_than_a_dozen_are_told_by_reason_the_most_first() -> None:
    lines = text(report.optimized(many_kept())).splitlines()
    sentence, unlock = CODES["padded-shift"], f"; to unlock: {PADDED.unlock}"
    assert lines[lines.index("kept: 14") + 1 :] == [
        f"  10 BatchNormalization, from bn_3 to bn_12  padded-shift at conv_9: {sentence}, because bn_99 left{unlock}",
        "  3 BatchNormalization, from bn_0 to bn_2  training-mode: batch statistics; to unlock: export it",
        f"  bn_13  BatchNormalization  padded-shift at conv_9: zeros pad it (channels 0, 1){unlock}",
        "  (-v lists every one)",
    ]  # fmt: skip


def test_verbose_lists_every_one_with_all_its_ways() -> None:
    reasons = (PADDED, Reason("graph-input", "it is the input", "x", "scale it", (7,)))
    two = Affine("bn_20", "BatchNormalization", "kept", reasons=reasons)
    said = text(report.explained(replace(many_kept(), affines=(*many_kept().affines, two)), verbose=True))
    assert said.count("  BatchNormalization  padded") + said.count("  BatchNormalization  training") == 15
    assert said.endswith(
        "pad with the shift\n      also graph-input at x: it is the input (channel 7); to unlock: scale it\n"
    )


def test_a_reason_at_the_node_itself_names_it_once() -> None:
    reason = Reason("training-mode", "batch statistics", "bn_9", "export it")
    said = text(report.explained(result(kept(reason=reason))))
    assert "  bn_9  BatchNormalization  training-mode: batch statistics; to unlock: export it\n" in said


def test_explain_speaks_of_what_can_be() -> None:
    many = result(*map(bn, range(30)))
    said = text(report.explained(Explained(many.model, many.batchnorm, many.affines)))
    assert "30 of 30 BatchNormalization can be folded into 30 Conv" in said


def test_nothing_folded_and_nothing_there() -> None:
    copied = result(certificate=None, verification=None)
    said = text(report.optimized(copied))
    assert "nothing was folded: the output is the input, byte for byte" in said
    assert "no BatchNormalization, and no scale or shift by constants" in said


def test_certified_only_is_loud() -> None:
    noise = NoiseCheck("float64, both models", "cpu", 8.0, True, (), (CHECK,))
    alone = replace(VERIFIED, status=CERTIFIED_ONLY, runtime=(), noise=noise, notes=("opset 1 is too old for it",))
    assert "verified CERTIFIED ONLY: opset 1 is too old for it" in flat(
        report.optimized(result(bn(1), verification=alone))
    )
    assert "error to float64 2.00e-07 -> 3.00e-07" in flat(report.optimized(result(bn(1), verification=alone)))
    assert "float64, as stored logits 3x10 float32: same" in flat(report.verification(alone, "a", "b"))
    assert report.verdict(alone).startswith("CERTIFIED ONLY, no runtime ran the original: compared in float64 only")
    nothing = replace(alone, noise=replace(noise, stored=()))
    assert report.verdict(nothing).endswith("nothing could be compared")


def test_not_verified_and_dropped_folds_are_said() -> None:
    warning = "the fold of bn_1 failed verification and was dropped; please report it"
    said = flat(report.optimized(result(bn(1), verification=None, warnings=(warning,))))
    assert "verified no, as asked (--no-verify)" in said
    assert f"warning: {warning}" in said


def test_a_weaker_reference_is_said() -> None:
    weak = replace(VERIFIED, noise=replace(VERIFIED.noise, status="weaker: too large"), notes=("compared with itself",))
    said = flat(report.optimized(result(bn(1), verification=weak)))
    assert "error to runtime" in said
    assert "note compared with itself" in said


def test_a_difference_is_said_with_its_problem() -> None:
    bad = replace(CHECK, passed=False, problem="its error is 1")
    run = replace(RUN, passed=False, outputs={"off": (bad,)})
    said = flat(
        report.verification(replace(VERIFIED, status=DIFFERENT, problems=("cpu: wrong",), runtime=(run,)), "a", "b")
    )
    assert "cpu, optim. off logits 3x10 float32: DIFFERENT, error 2.00e-07 -> 3.00e-07" in said
    assert "problem cpu: wrong" in said
    assert "verdict different: cpu: wrong" in said


def test_integer_outputs_count_their_differences() -> None:
    top = OutputCheck("top", "int64", (3,), 0, True, note="differs only where rounding moves it too", mismatches=1)
    run = replace(RUN, outputs={"off": (top,)})
    said = flat(report.verification(replace(VERIFIED, runtime=(run,)), "a", "b"))
    assert "top 3 int64: same, 1 elements differ; differs only where rounding moves it too" in said


def test_what_ran_elsewhere_is_listed() -> None:
    run = replace(RUN, placement=replace(PLACED, elsewhere=("Shape 's' ran on CPUExecutionProvider",)))
    assert "Shape 's' ran on" in text(report.verification(replace(VERIFIED, runtime=(run,)), "a", "b"))


ROW = BenchRow(
    "cpu", 4, {"x": (4, 3, 8, 9)}, 120, Timing(2.5, 2.4, 2.6, 80, 2.75, 2.875, None, 1600),
    Timing(0.5, 0.4, 0.6, 70, 0.75, 0.8, 0.9, 8.0), 1.25, 1.2, 1.3, "1.25x faster", 12,
    Compared(80, 70, 11, 1.14, 1.1, 1.2, "1.14x quicker"),
    Memory(10**8, Compared(3e6, 2e6, 3, 1.5, 1.25, 1.75, "1.50x smaller"), Compared(4e6, 2e6, 2, 2, None, None, "-")),
    {"use_deterministic_compute": "0"},
)  # fmt: skip


def raced(**changes: Any) -> str:
    row = replace(ROW, **changes)
    return text(report.benchmark(Bench((row,), 1000, 900, None, ("a note",), 6.0), "a.onnx", "b.onnx"))


@pytest.mark.parametrize("verdict", ["no difference", "1.24x faster", "1.10x slower"])
def test_bench(verdict: str) -> None:
    lines = raced(verdict=verdict).splitlines()
    memory = "3.0 MB -> 2.0 MB; ratio 1.500, extremes 1.250 to 1.750, beyond 100.0 MB for Python and ONNX Runtime"
    assert lines[1:10] == [
        "  cpu, batch 4        120 pairs of runs in turns, in 12 blocks; x 4x3x8x9",
        "    milliseconds            p50      p90      p95      p99  items/s",
        "    original               2.50     2.75     2.88        -    1,600",
        "    optimized             0.500    0.750    0.800    0.900        8",
        f"    verdict           {verdict}  (ratio 1.250, 95% 1.200 to 1.300)",
        "    settings          not deterministic",
        "    session made      1.14x quicker  (80.00 -> 70.00 ms, 11 times each; ratio 1.140, 95% 1.100 to 1.200)",
        f"    peak memory       1.50x smaller  ({memory})",
        "    on the GPU        -  (4.0 MB -> 2.0 MB; ratio 2.000)",
    ]
    assert lines[10:] == [
        "  size                1.0 kB -> 900 bytes",
        "  measured            6.0 s, ONNX Runtime's own choice of threads",
        "  note                a note",
    ]


def test_what_all_batches_share_is_said_once_for_each_provider() -> None:
    rows = (ROW, replace(ROW, batch=8), replace(ROW, provider="cuda", settings={"use_tf32": "0"}))
    said = text(report.benchmark(Bench(rows, 1, 1, 2, (), 6.0), "a.onnx", "b.onnx"))
    assert [said.count(word) for word in ("verdict", "peak memory", "session made", "settings")] == [3, 3, 2, 2]
    assert "TF32 off" in said


def test_bench_without_an_interval_or_memory_claims_neither() -> None:
    said = raced(low=None, high=None, verdict="too few to tell", memory=None)
    assert "verdict           too few to tell  (ratio 1.250)\n" in said
    assert "memory" not in said


@pytest.mark.parametrize(
    ("provider", "given", "words"),
    [
        ("cpu", {"use_deterministic_compute": "1"}, "deterministic"),
        ("cuda", {"use_tf32": "0", "use_deterministic_compute": "1", "device_id": "2"},
         "TF32 off, deterministic, device_id=2"),
        ("cuda", {"use_tf32": "1", "use_deterministic_compute": "0"}, "TF32 on, not deterministic"),
        ("tensorrt", {"NVIDIA_TF32_OVERRIDE": "0", "use_deterministic_compute": "1"}, "TF32 off, deterministic"),
        ("tensorrt", {"NVIDIA_TF32_OVERRIDE": "not set", "use_deterministic_compute": "1"}, "TF32 on, deterministic"),
    ],
)  # fmt: skip
def test_the_settings_of_a_provider_are_shown(provider: str, given: dict[str, str], words: str) -> None:
    run = replace(RUN, provider=provider, settings=given)
    checked = replace(VERIFIED, runtime=(run,))
    assert f"{provider}, settings {words} " in f"{flat(report.verification(checked, 'a', 'b'))} "
    assert f"settings          {words}\n" in raced(provider=provider, settings=given)
    summary = flat(report.optimized(result(bn(1), verification=checked)))
    tf32 = words.split(",", maxsplit=1)[0]
    assert (f"on, {tf32}: 1,200 nodes" if "TF32" in tf32 else "off and on: 1,200 nodes") in summary


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (40_662_977, "40.7 MB"), (3 * 10**9, "3.0 GB")],
)
def test_sizes(count: int, words: str) -> None:
    assert report.size(count) == words
