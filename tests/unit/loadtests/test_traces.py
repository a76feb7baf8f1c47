"""The trace formats, with made-up rows, and what is done to a trace before it is replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.trace_source import GENERATED, STATISTICS, Kind, TraceSource, generate_trace
from loadtests.traces import TraceError, TraceRequest, cut_window, read_trace, scale_lengths, scale_time

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.6805900,12,0
2023-11-16 18:15:47.1805900,879,55
"""
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
118,ChatGPT,417,0,417,Conversation log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 2354]}

{"timestamp": 30535, "input_length": 10, "output_length": 5}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_azure_rows_are_sorted_and_failed_requests_left_out(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path / "any.name", AZURE))
    assert [request.arrival_s for request in requests] == pytest.approx([0, 0.5, 4.314579])
    assert [(request.prompt_tokens, request.output_tokens) for request in requests] == [
        (374, 44),
        (879, 55),
        (396, 109),
    ]


def test_burst_gpt(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path / "trace.csv", "\ufeff" + BURST_GPT.replace("\n", "\r\n")))
    assert requests == [TraceRequest(0.0, 472, 18), TraceRequest(40.5, 1087, 230)]


def test_mooncake(tmp_path: Path) -> None:
    requests = read_trace(write(tmp_path / "trace.csv", MOONCAKE))
    assert requests[0] == TraceRequest(0.0, 6955, 52, (46, 47, 2353))
    assert [request.arrival_s for request in requests] == pytest.approx([0, 3.053, 3.053])
    assert requests[2].prefix_ids == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: is neither"),
        ("a,b\n1,2\n", "line 1: is neither"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        (AZURE.replace("396", "many"), r"line 3: ContextTokens: .*\(it is 'many'\)"),
        (AZURE.replace("396", "-1"), "line 3: ContextTokens: .*greater than or equal to 0"),
        (AZURE.replace("2023-11-16 18:15:48", "noon"), "line 4: TIMESTAMP"),
        (AZURE.replace(",55", ""), "line 5: GeneratedTokens"),
        (BURST_GPT.replace("45.5", "nan"), "line 3: Timestamp: .*finite"),
        (MOONCAKE.replace('"output_length": 26, ', ""), "line 2: output_length: Field required$"),
        (MOONCAKE.replace("10, ", "10 "), "line 4: is no JSON"),
        (MOONCAKE.replace("[46, 2354]", '["x"]'), "line 2: hash_ids.0: "),
    ],
)
def test_errors_name_file_line_and_field(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "trace", text)
    with pytest.raises(TraceError, match=message) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}: ")


def test_bytes_are_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="no text file"):
        read_trace(path)


TRACE = [TraceRequest(float(index * index), 100 + index, 10, (index,)) for index in range(50)]


def test_a_window_counts_from_the_request_before_it() -> None:
    windows = [cut_window(TRACE, 10, seed) for seed in range(30)]
    for window in windows:
        first = window[0].prefix_ids[0]
        assert [request.prefix_ids[0] for request in window] == list(range(first, first + 10))
        assert [request.arrival_s for request in window] == [
            index**2 - (first - 1) ** 2 for index in range(first, first + 10)
        ]
    assert len({window[0].prefix_ids for window in windows}) > 10
    assert windows[3] == cut_window(TRACE, 10, 3)


def test_the_whole_trace_is_the_longest_window() -> None:
    assert len(cut_window(TRACE, 49, 0)) == 49
    with pytest.raises(ValueError, match="holds 50 requests where 51 are needed"):
        cut_window(TRACE, 50, 0)


def test_time_is_scaled_to_the_rate_and_keeps_its_shape() -> None:
    window = cut_window(TRACE, 10, 1)
    scaled = scale_time(window, 2.0)
    assert scaled[-1].arrival_s == pytest.approx(5.0)
    factors = {round(after.arrival_s / before.arrival_s, 9) for before, after in zip(window, scaled, strict=True)}
    assert len(factors) == 1
    with pytest.raises(TraceError, match="at the same time"):
        scale_time([TraceRequest(0.0, 1, 1)] * 3, 1.0)


def test_lengths_are_scaled_and_never_zero() -> None:
    scaled = scale_lengths([TraceRequest(0.0, 800, 3), TraceRequest(1.0, 2, 81)], 1 / 8)
    assert [(request.prompt_tokens, request.output_tokens) for request in scaled] == [(100, 1), (1, 10)]


@pytest.mark.parametrize(
    ("kind", "prompts", "outputs", "rate_per_s", "cv"),
    [
        ("conv", {50: 1_020, 90: 2_734, 99: 4_142}, {50: 129, 90: 424, 99: 601}, 5.5, 1.1),
        ("code", {50: 1_469, 99: 7_436}, {50: 13, 99: 249}, 2.6, 13),
    ],
)
def test_generated_traces_have_the_published_statistics(
    kind: Kind, prompts: dict[int, int], outputs: dict[int, int], rate_per_s: float, cv: float
) -> None:
    trace = generate_trace(STATISTICS[kind], 200_000, seed=1)
    for expected, found in (
        (prompts, [request.prompt_tokens for request in trace]),
        (outputs, [request.output_tokens for request in trace]),
    ):
        assert np.percentile(found, list(expected)) == pytest.approx(list(expected.values()), rel=0.05)
        assert min(found) >= 1
    gaps_s = np.diff([request.arrival_s for request in trace])
    assert np.mean(gaps_s) == pytest.approx(1 / rate_per_s, rel=0.1)
    assert np.std(gaps_s) / np.mean(gaps_s) == pytest.approx(cv, rel=0.35)  # heavy-tailed: slow to settle
    assert trace[:100] == generate_trace(STATISTICS[kind], 200_000, seed=1)[:100]


def test_without_a_trace_requests_are_generated() -> None:
    source = TraceSource(None)
    assert source.name("code") == GENERATED
    assert len(source.draw("conv", 70, seed=3)) == 70
    assert source.draw("conv", 70, seed=3) == source.draw("conv", 70, seed=3) != source.draw("conv", 70, seed=4)


def test_a_folder_holds_one_trace_a_kind(tmp_path: Path) -> None:
    write(tmp_path / "my_CONV.csv", AZURE)
    write(tmp_path / "code.jsonl", MOONCAKE)
    write(tmp_path / "README.md", "conv")
    source = TraceSource(tmp_path)
    assert (source.name("conv"), source.name("code")) == ("my_CONV.csv", "code.jsonl")
    assert source.draw("conv", 2, seed=1)[0].prompt_tokens == 879
    assert source.draw("code", 2, seed=1)[0].prefix_ids == (46, 2354)


def test_one_trace_serves_for_all(tmp_path: Path) -> None:
    path = write(tmp_path / "burst.csv", BURST_GPT)
    assert TraceSource(tmp_path).name("conv") == TraceSource(path).name("code") == "burst.csv"


def test_traces_that_cannot_be_chosen_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"one trace with `conv` in its name is needed \(there is no .csv"):
        TraceSource(tmp_path).name("conv")
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, AZURE)
    with pytest.raises(TraceError, match=r"there is a.csv, b.csv"):
        TraceSource(tmp_path).draw("conv", 1, seed=1)
    with pytest.raises(TraceError, match="no such trace or folder"):
        TraceSource(tmp_path / "missing").name("conv")
    with pytest.raises(TraceError, match=r"a.csv: holds 3 requests where 11 are needed"):
        TraceSource(tmp_path / "a.csv").draw("conv", 10, seed=1)


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl"])
def test_lines_that_cannot_be_used_are_left_out_where_that_is_wanted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("Timestamp,Request tokens,Response tokens\n1,10,5\n2,ten,5\n3,-1,5\n4,20,5\n")
    else:
        line = '{{"timestamp": {}, "input_length": {}, "output_length": 5}}'
        path.write_text("\n".join([line.format(1000, 10), "{", line.format(3000, -1), line.format(4000, 20)]) + "\n")
    problems: list[str] = []

    requests = read_trace(path, problems)

    assert [request.prompt_tokens for request in requests] == [10, 20]
    assert len(problems) == 2
    assert all(str(path) in problem for problem in problems)
    assert ("line 3" if name.endswith("csv") else "line 2") in problems[0]
    with pytest.raises(TraceError):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MOONCAKE + '{"timestamp": ' + "[" * 5_000, "line 5: is nested too deeply"),
        (MOONCAKE + '{"timestamp": ' + "9" * 5_000 + "}", "line 5: is no JSON"),
        (MOONCAKE + '{"timestamp": 1e16, "input_length": 1, "output_length": 1}', "line 5: timestamp"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1000000001, "output_length": 1}', "line 5: input_length"),
        (BURST_GPT + "-1e308,GPT-4,1,1,2,API log\n", "line 5: Timestamp"),
        (AZURE + f'"{"x" * 140_000}",1,2\n', "line 6: is no CSV: field larger than field limit"),
    ],
)
def test_whatever_a_line_holds_it_is_named_or_left_out(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "trace", text)
    with pytest.raises(TraceError, match=message):
        read_trace(path)
    problems: list[str] = []
    good = write(tmp_path / "good", text[: text.rindex("\n", 0, -1)])
    assert read_trace(path, problems) == read_trace(good)
    assert len(problems) == 1


def test_a_message_repeats_no_more_than_the_beginning_of_a_value(tmp_path: Path) -> None:
    nested = "[" * 500 + "]" * 500
    for value in (f'"{"x" * 10_000}"', nested):
        with pytest.raises(TraceError) as refused:
            read_trace(write(tmp_path / "trace", f'{{"timestamp": {value}, "input_length": 1, "output_length": 1}}'))
        assert len(str(refused.value)) < 300
