"""The configuration's loader: what it reads, what it refuses and in which words."""

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipes.keys import keys
from recipes.load import UsageError, load, to_yaml
from recipes.schema import PROFILES, Curation, key, section

PROMPT = "a cat's toy, then: 一只猫，走（慢） {x} [y] a=b # 'q' \"r\" ${HOME} \\${n} null"


@dataclass
class Optimizer:
    """How the weights move.

    And a second paragraph.
    """

    rate: float = key(1e-4, "learning rate")
    betas: list[float] = key([0.9, 0.99], "Adam's")
    name: str = key("adamw", "which one", choices=("adamw", "muon"))


@dataclass
class Fit:
    """A training run."""

    recipe: str | None = key(None, "which recipe")
    prompt: str = key("", "what to draw")
    negative: str | None = key(None, "what not to draw")
    steps: int = key(10, "how many")
    resume: bool = key(False, "go on")
    seeds: list[int] = key([], "random seeds")
    names: list[str] = key([], "names")
    only: list[str] = key([], "parts", choices=("one", "two"))
    sizes: dict[str, int] = key({}, "any name will do")
    mix: dict[str, float] = key({"image": 0.2, "video": 0.8}, "shares")
    optimizer: Optimizer = section(Optimizer)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*argv: str, schema: type = Fit, folder: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load(schema, list(argv), folder) if folder else load(schema, list(argv))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_without_arguments_a_schema_gives_its_defaults():
    assert load(Fit, []) == Fit()


@pytest.mark.parametrize(
    "text",
    [PROMPT, "null", "true", "1e3", "480p", "", " ", "-1", "???", "\\???", "${", "\\", "a\nb", "~"],
)
def test_text_takes_the_rest_of_its_argument_as_it_stands(text):
    assert load(Fit, [f"prompt={text}"]).prompt == text


def test_text_stands_as_it_is_whatever_its_characters():
    @dataclass
    class Text:
        text: str = ""

    letters, pieces = random.Random(0), [*"${}\\'\",?([=: #红", "${", "???", "\\${"]
    for _ in range(2000):
        text = "".join(letters.choices(pieces, k=letters.randint(1, 6)))
        assert load(Text, [f"text={text}"]).text == text


def test_a_path_with_brackets_commas_and_spaces_is_text():
    path = "/videos/my clips (1), [final]/它.mp4"
    assert load(Curation, [f"source={path}"]).source == path


def test_null_is_none_only_where_none_is_allowed():
    config = load(Fit, ["negative=null", "prompt=null"])
    assert config.negative is None
    assert config.prompt == "null"
    assert "steps=null: wants a whole number" in refusal("steps=null")


@pytest.mark.parametrize("text", ["one,two", "[one,two]", "one, two", "[ one , two ]"])
def test_a_list_is_read_with_and_without_brackets(text):
    assert load(Fit, [f"names={text}"]).names == ["one", "two"]


def test_list_elements_are_typed_and_may_hold_commas_in_quotes():
    assert load(Fit, ["seeds=[1,2]"]).seeds == [1, 2]
    assert load(Fit, ["optimizer.betas=.9,.95"]).optimizer.betas == [0.9, 0.95]
    assert load(Fit, ['names="a, b",c\'s']).names == ["a, b", "c's"]
    assert load(Fit, ["names=${x},???"]).names == ["${x}", "???"]
    assert load(Fit, ["names="]).names == load(Fit, ["names=[]"]).names == []
    assert "seeds=1,x: wants a list of whole numbers: random seeds" in refusal("seeds=1,x")


def test_nested_keys_and_dictionary_entries_are_dotted():
    config = load(Fit, ["optimizer.rate=3e-5", "mix.image=1", "sizes.a.b=7"])
    assert config.optimizer.rate == 3e-5
    assert config.mix == {"image": 1.0, "video": 0.8}
    assert isinstance(config.mix["image"], float)
    assert config.sizes == {"a.b": 7}


@pytest.mark.parametrize(
    "argument",
    [
        *("steps=3.0", "steps=true", "steps=", "steps=1e3", "resume=yes", "resume=1"),
        *("resume=True", "optimizer.rate=fast", "optimizer.rate=nan", "optimizer.rate=inf"),
        "mix.image=x",
    ],
)
def test_a_wrong_type_is_refused_with_what_is_wanted(argument):
    name = argument.split("=")[0]
    known = keys(Fit).get(name) or keys(Fit)["mix"]
    assert refusal(argument) == f"{argument}: wants {known.words}: {known.help}"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optimiser.rate", "optimizer.rate"),
        ("rate", "optimizer.rate"),
        ("stesp", "steps"),
        ("mix.vidoe", "mix.video"),
        ("optimizer.name.x", "optimizer.name"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(written, meant):
    message = refusal(f"{written}=1")
    assert message.startswith(f"{written}=1: unknown key; the nearest is {meant} (")


def test_every_misspelt_key_of_the_curation_leads_back_to_itself():
    for path in keys(Curation):
        if not keys(Curation)[path].is_dict:
            assert f"the nearest is {path} (" in refusal(f"{path}x=1", schema=Curation)


def test_a_group_is_not_a_key():
    assert "one of them, such as optimizer.rate=" in refusal("optimizer=1")
    assert "one of them, such as mix.image=" in refusal("mix=1")


def test_choices_are_held_in_text_and_in_lists():
    assert load(Fit, ["optimizer.name=muon", "only=two,one"]).only == ["two", "one"]
    assert "'moun' is not one of adamw, muon; the nearest is muon" in refusal("optimizer.name=moun")
    assert "'tow' is not one of one, two; the nearest is two" in refusal("only=one,tow")


def test_what_is_no_key_and_value_is_told_how_keys_are_written():
    assert "without dashes: batch_size=3" in refusal("--batch-size=3")
    assert "without dashes: x=..." in refusal("-x")
    assert "needs quotes" in refusal("prompt=a", "cat")


def test_the_last_of_two_equal_keys_counts():
    assert load(Fit, ["steps=1", "steps=2"]).steps == 2


def test_later_layers_win_schema_parents_recipe_command_line(tmp_path):
    write(tmp_path / "a.yaml", "steps: 1\nprompt: from a\noptimizer: {rate: 1e-3}\nmix: {image: 0}")
    write(tmp_path / "b.yaml", "parent: a\nsteps: 2\nprompt: from b\nseeds: [1, 2]")
    write(tmp_path / "c.yaml", "parent: b\nsteps: 3\nseeds: 4,5\noptimizer:\n  name: muon\nmix:\n")
    config = load(Fit, ["steps=4", "recipe=c"], tmp_path)
    assert (config.steps, config.prompt, config.seeds) == (4, "from b", [4, 5])
    assert config.optimizer == Optimizer(rate=1e-3, name="muon")
    assert config.mix == {"image": 0.0, "video": 0.8}
    assert config.recipe == "c"


def test_a_recipe_may_be_a_path_and_its_parent_a_path_beside_it(tmp_path):
    write(tmp_path / "known.yaml", "steps: 5")
    write(tmp_path / "mine (1)" / "old.yaml", "parent: known\nprompt: old")
    mine = write(tmp_path / "mine (1)" / "new.yaml", "parent: ./old.yaml\nresume: true")
    config = load(Fit, [f"recipe={mine}"], tmp_path)
    assert (config.steps, config.prompt, config.resume) == (5, "old", True)


def test_yaml_text_stands_as_it_is_too(tmp_path):
    quoted = PROMPT.replace("\\", "\\\\").replace('"', '\\"')
    write(tmp_path / "a.yaml", f'prompt: "{quoted}"\nnegative: no\nnames: [yes, 1e3, 480p, "???"]')
    config = load(Fit, ["recipe=a"], tmp_path)
    assert config.prompt == PROMPT
    assert config.negative == "no"
    assert config.names == ["yes", "1e3", "480p", "???"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("parent: b", "b.yaml: parent: the file is its own ancestor (a → b → a)"),
        ("parent: a.yaml", "a.yaml: parent: the file is its own ancestor (a → a)"),
        ("parent: bb", "a.yaml: parent: bb: no file bb.yaml; the nearest is b"),
        ("parent: [b]", "a.yaml: parent: wants one name, one path, or null"),
        (
            "optimizer: {rte: 1}",
            "a.yaml: optimizer.rte: unknown key; the nearest is optimizer.",
        ),
        ("optimzer: {rate: 1}", "a.yaml: optimzer: unknown key; the nearest is optimizer"),
        ("optimizer: fast", "a.yaml: optimizer: a group of keys"),
        ("steps: [1]", "a.yaml: steps: wants a whole number: how many"),
        ("steps: {x: 1}", "a.yaml: steps: wants a whole number: how many"),
        ("steps:", "a.yaml: steps: wants a whole number: how many"),
        ("mix: {image: {x: 1}}", "a.yaml: mix.image: wants a number: shares"),
        ("seeds: [[1]]", "a.yaml: seeds: wants a list of whole numbers: random seeds"),
        ("steps: 1\nsteps: 2", "a.yaml: line 2: steps stands twice"),
        ("steps: [1\nprompt: x", "a.yaml: line 2: "),
        ("- steps", "a.yaml: wants keys and values"),
        ("? [a, b]\n: 1", "a.yaml: line 1: "),
        ("prompt: \x07", "a.yaml: "),
    ],
)
def test_a_mistake_in_a_file_is_told_with_the_file(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.yaml", "parent: a")
    write(tmp_path / "a.yaml", content)
    assert refusal("recipe=a", folder=tmp_path).startswith(words)


def test_a_missing_recipe_is_told_with_the_nearest_one(tmp_path):
    write(tmp_path / "720p.yaml", "steps: 1")
    assert refusal("recipe=72p", folder=tmp_path).endswith("the nearest is 720p")
    assert "no file" in refusal("recipe=nowhere/720p.yaml", folder=tmp_path)


def test_a_file_that_is_not_text_is_a_mistake_not_a_crash(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00prompt")
    assert "a.yaml: " in refusal("recipe=a", folder=tmp_path)


def test_an_empty_file_changes_nothing(tmp_path):
    write(tmp_path / "a.yaml", "# only a comment\n")
    assert load(Fit, ["recipe=a"], tmp_path) == Fit(recipe="a")


def test_a_profile_fills_select_below_the_recipe_and_the_command_line(tmp_path):
    write(tmp_path / "profiles" / "192p.yaml", "min_short_side: 192\nmax_nsfw: 0.4\nmax_noise: 0.3")
    write(tmp_path / "profiles" / "720p.yaml", "parent: 192p\nmin_short_side: 720\ntiers: {low: 1}")
    argv = ["select.max_nsfw=0.1", "profile=720p"]
    select = load(Curation, argv, tmp_path).select
    assert (select.min_short_side, select.max_nsfw, select.max_noise) == (720.0, 0.1, 0.3)
    assert select.tiers["low"] == 1.0
    assert select.tiers["optimal"] == 1.0
    unknown = write(tmp_path / "profiles" / "sft.yaml", "min_sharpnes: 1")
    message = refusal("profile=sft", schema=Curation, folder=tmp_path)
    assert message.startswith(
        f"{unknown}: select.min_sharpnes: unknown key; the nearest is select."
    )


def test_a_recipe_may_name_the_profile_and_overrule_it(tmp_path):
    @dataclass
    class Both(Curation):
        recipe: str = key("r", "which recipe")

    write(tmp_path / "profiles" / "480p.yaml", "max_noise: 0.1")
    write(tmp_path / "profiles" / "720p.yaml", "max_noise: 0.2\nmax_nsfw: 0.2")
    write(tmp_path / "r.yaml", "profile: 720p\nselect: {max_nsfw: 0.3}")
    select = load(Both, [], tmp_path).select
    assert (select.max_noise, select.max_nsfw) == (0.2, 0.3)
    assert load(Both, ["profile=480p"], tmp_path).select.max_noise == 0.1


def test_a_mistake_the_schema_itself_finds_is_the_users():
    @dataclass
    class Even:
        n: int = field(default=2, metadata={"help": "an even number"})

        def __post_init__(self):
            if self.n % 2:
                raise ValueError(f"n={self.n} is odd")

    assert load(Even, ["n=4"]).n == 4
    assert refusal("n=3", schema=Even) == "n=3 is odd"


def test_a_schema_with_a_type_that_cannot_be_read_is_the_programmers_mistake():
    @dataclass
    class Odd:
        pair: tuple[int, int] = (0, 0)

    with pytest.raises(TypeError, match=r"Odd\.pair"):
        load(Odd, [])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads_and_says_something(profile):
    select = load(Curation, [f"profile={profile}"]).select
    assert select != Curation().select


def test_the_thresholds_rise_with_the_training_stage():
    stages = [
        load(Curation, [f"profile={name}"]).select for name in ("192p", "480p", "720p", "sft")
    ]
    for one in dataclasses.fields(Curation().select):
        values = [getattr(stage, one.name) for stage in stages]
        if one.name.startswith("min_"):
            values = [-float("inf") if value is None else value for value in values]
            assert values == sorted(values), one.name
        elif one.name.startswith("max_"):
            values = [float("inf") if value is None else value for value in values]
            assert values == sorted(values, reverse=True), one.name
        elif one.name == "tiers":
            for tier in values[0]:
                weights = [value[tier] for value in values]
                assert weights == sorted(weights, reverse=True), tier


def test_what_to_yaml_writes_loads_back_whatever_the_text(tmp_path):
    letters, pieces = random.Random(1), [*"${\\'\",?-([=: #红0~|>&*", "1e3", "no", "null", "\n"]
    texts = ["".join(letters.choices(pieces, k=letters.randint(1, 4))) for _ in range(2000)]
    file = write(tmp_path / "a.yaml", to_yaml(Fit(prompt=texts[0], names=texts)))
    again = load(Fit, [f"recipe={file}"])
    assert (again.prompt, again.names) == (texts[0], texts)
