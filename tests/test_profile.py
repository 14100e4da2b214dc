"""`teas profile` on a small run: table, cache, findings against scipy, and bad input."""

import json

import pytest
from scipy import stats

from teas.study import profile as profiles
from teas.study.hooks import Hooks
from test_cli import folder, teas  # noqa: F401 (the finished run of the commands' tests)


@pytest.fixture(scope="module")
def profiled(folder):  # noqa: F811
    done = teas(
        "profile", "whole", "--windows", 4, "--images", 300, "--seeds", 2, "--shorten", 1, "--noise", "flip=0.2", "--noise", "jitter=1", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_profile_holds_what_it_says(profiled):
    folder, found = profiled  # noqa: F811
    assert found == json.loads((folder / "whole/profile.json").read_text())
    assert set(found["vulnerability"]) == {"flip", "jitter", "shortened"}
    layers = list(found["layers"])
    flip = found["vulnerability"]["flip"]
    for index, layer in enumerate(layers):
        assert found["layers"][layer]["activity"] == pytest.approx(
            sum(k * share for k, share in enumerate(found["layers"][layer]["histogram"])) / found["windows"][layer]
        )
        assert flip["interval"][index][0] <= flip["accuracy"][index] <= flip["interval"][index][1]
        assert flip["damage"][index] == pytest.approx(found["clean"] - flip["accuracy"][index])
    assert found["samples"] == 300
    text = " ".join(profiles.findings(found))
    assert "flip noise on one layer: Spearman" in text
    assert "over 2 seeds" in text
    header, rows = profiles.table(found)
    assert len(rows) == len(layers)
    assert all(len(row) == len(header) for row in rows)


def test_a_second_profile_is_read_from_the_cache(profiled):
    folder, found = profiled  # noqa: F811
    said = []
    again, _ = profiles.run(folder / "whole", None, "4", ["flip=0.2", "jitter=1"], images=300, seeds=range(2), shorten=1, hooks=Hooks(say=said.append))
    assert again == found
    assert said == []
    more, _ = profiles.run(folder / "whole", None, "4", ["flip=0.3"], images=300, seeds=range(1), shorten=1, hooks=Hooks(say=said.append))
    assert said == ["flip noise of 0.3 on one layer at a time, seed 0"]
    assert more["vulnerability"]["shortened"] == found["vulnerability"]["shortened"]


def test_correlation_is_printed_even_against_the_paper():
    def measured(damage):
        layers = {f"l{i}": {"activity": 0.1 * (i + 1), "neurons": 10} for i in range(8)}
        base = {"clean": 90.0, "layers": layers}

        class Stub:
            class experiment:
                name = "stub"

            class data:
                test = range(100)

            full = None

            @staticmethod
            def make(_):
                from types import SimpleNamespace

                from teas.spiking.semantics import Semantics

                return SimpleNamespace(semantics=Semantics())

        return profiles._summary(Stub, base, {"flip": damage}, {"images": 100, "shorten": 2, "noises": [], "seeds": [0, 1], "windows": {}})

    rising = measured([[1, 2, 3, 5, 4, 6, 7, 8], [1, 2, 3, 4, 5, 6, 8, 7]])
    assert "as the paper says" in profiles.findings(rising)[1]
    falling = measured([[8, 7, 6, 5, 4, 3, 1, 2]])
    assert "AGAINST the paper" in profiles.findings(falling)[1]
    assert falling["vulnerability"]["flip"]["correlation"]["rho"] == pytest.approx(stats.spearmanr(range(8), [8, 7, 6, 5, 4, 3, 1, 2]).statistic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["whole", "--noise", "flip=2"], "between 0 and 1"),
        (["whole", "--noise", "heat"], "choose one of flip, delete"),
        (["whole", "--noise", "flip=much"], "for example flip=0.1"),
        (["whole", "--windows", "no.json"], "cannot read"),
        (["small.toml"], "teas run small.toml first"),
        (["nowhere"], "not a teas run folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, arguments, message):  # noqa: F811
    done = teas("profile", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
