"""A retired word ends with exit code 2 and the name of what replaces it (`envs.replacements`)."""

import pytest

from envs.replacements import RETIRED
from tests.support.tiers import thorough_but_for
from vllm_cli.main import main

ENGINES = pytest.mark.parametrize("engine", ["embedded", "vllm"])


FORMS = {
    "plain": lambda name: f"--{name}",
    "with a value": lambda name: f"--{name}=x",
    "negated": lambda name: f"--no-{name}",
    "with underscores": lambda name: f"--{name.replace('-', '_')}",
}


@ENGINES
@pytest.mark.parametrize("flag", RETIRED)
@pytest.mark.parametrize("form", thorough_but_for(FORMS, "plain"))
@pytest.mark.parametrize("models", thorough_but_for(["m", "a b", ""], "m"), ids=["one", "several", "none"])
def test_a_retired_flag(engine, flag, form, models, capsys):
    assert main(["serve", *models.split(), FORMS[form](flag[2:]), "--engine", engine]) == 2
    assert f"(removed: {RETIRED[flag]})" in capsys.readouterr().err


@ENGINES
@pytest.mark.parametrize("flag", RETIRED)
@pytest.mark.parametrize("setting", thorough_but_for(["{}: true", "{}: x", "{}: null"], "{}: true"))
def test_a_retired_flag_in_a_config_file(engine, flag, setting, tmp_path, capsys):
    (file := tmp_path / "serve.yaml").write_text(setting.format(flag[2:]))
    assert main(["serve", "m", "--engine", engine, "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"(removed: {RETIRED[flag]})" in error
    assert str(file) in error


@ENGINES
@pytest.mark.parametrize("flag", RETIRED)
def test_a_retired_flag_in_a_models_file(engine, flag, tmp_path, capsys):
    (file := tmp_path / "models.yaml").write_text(f"models: {{a: {{model: m, args: '{flag}', engine: {engine}}}}}")
    assert main(["serve", "--models", str(file), "--preflight-only"]) == 2
    output = capsys.readouterr()
    assert f"(removed: {RETIRED[flag]})" in output.out + output.err
