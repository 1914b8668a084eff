"""Conversations with images: tokens and tensors as from transformers' processors, limits, and the cache."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from base.errors import OverloadedError, RequestError
from server.operation.admission import Admission
from server.terms.bounded_cache import BoundedCache
from server.terms.config import ModelFiles, RendererConfig
from server.terms.limits import LimitsConfig
from server.text.model_files import TokenizerLoadError
from server.text.renderers.prompts import ChatOptions, RenderedPrompt
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import FAMILIES, as_bytes, as_url, image, render_with_images, save_vlm
from tests.server.inline_executor import InlineExecutor
from tests.support.marks import thorough_but_for


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that saves the model of a family once."""
    root = tmp_path_factory.mktemp("vlm")
    return cache(lambda family: save_vlm(root / family, family))


@pytest.fixture
def build(folder_of: Callable[[str], Path]):
    """A function that builds renderers, without threads unless an executor is given."""

    def build_one(family: str = "qwen2_vl", executor: Executor | None = None, **settings: Any) -> Renderer:
        path = folder_of(family)
        return Renderer(ModelFiles(path, path), RendererConfig(**settings), executor=executor or InlineExecutor())

    return build_one


def _image_part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": as_url(image), "detail": "auto"}}


def _message(*parts: str | Image.Image) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else _image_part(p) for p in parts]
    return {"role": "user", "content": content}


def _render(renderer: Renderer, *messages: dict[str, Any], **options: Any) -> RenderedPrompt:
    return asyncio.run(render_with_images(renderer, list(messages), ChatOptions(**options)))


def _tensors(prompt: RenderedPrompt) -> dict[str, np.ndarray[Any, Any]]:
    mm = prompt.inputs.mm or {}
    return {name: np.frombuffer(t.data, t.dtype).reshape(t.shape) for name, t in mm.items()}


CONVERSATIONS = {
    "one": [("Look: ", image(56, 56), " What is it?")],
    "two sizes": [("A", image(100, 60, seed=1), "B", image(80, 120, seed=2))],
    "same size": [(image(200, 100, seed=3), image(200, 100, seed=4), "Compare.")],
    "tall and wide": [(image(30, 300, seed=5), image(300, 30, seed=6))],
    "several turns": [("x", image(56, 70, seed=7)), ("y",), (image(90, 56, seed=8), "z")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", thorough_but_for(FAMILIES, "smolvlm", "qwen2_vl", "llava_next"))
def test_tokens_and_tensors_equal_those_of_transformers(build, family, name):
    renderer = build(family)
    processor = renderer.vision._images._processor
    if getattr(processor, "video_processor", processor) is None:
        processor.video_processor = SimpleNamespace(num_frames=8, fps=1, size={"longest_edge": 1}, merge_size=2)
    turns = CONVERSATIONS[name]
    prompt = _render(renderer, *(_message(*parts) for parts in turns))  # type: ignore[attr-defined]
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in t
            ],
        }
        for t in turns  # type: ignore[attr-defined]
    ]
    wanted = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="np"
    )
    assert prompt.token_ids == wanted.pop("input_ids")[0].tolist()
    wanted.pop("attention_mask")
    found = _tensors(prompt)
    assert set(found) == set(wanted)
    for key, array in wanted.items():
        assert found[key].shape == array.shape
        assert np.array_equal(found[key], array), key


@pytest.mark.parametrize("family", thorough_but_for(FAMILIES, "smolvlm", "qwen2_vl", "llava_next"))
def test_text_without_images_has_the_processors_tokens_and_no_tensors(build, family):
    renderer = build(family)
    prompt = _render(renderer, {"role": "user", "content": "Hello"})
    processor = renderer.vision._images._processor
    text = (
        processor.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
        if (family != "smolvlm")
        else renderer.render_messages([{"role": "user", "content": "Hello"}], ChatOptions())
    )
    assert prompt.inputs is None
    assert prompt.token_ids == renderer.tokenizer.encode(text, add_special_tokens=True)


def test_a_template_that_expects_text_gets_the_image_token_before_the_text(build):
    template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    prompt = _render(build("llava", chat_template=template), _message("What?", image()))
    assert prompt.text == "<image>" * 16 + "\nWhat?|"


@pytest.mark.parametrize("form", ["text", "input_image", "detail", "local file"])
def test_every_form_of_an_image_part_is_accepted_and_allowed_local_files_are_read(build, tmp_path, form):
    (tmp_path / "a.png").write_bytes(as_bytes(image(seed=3)))
    url = f"file://{tmp_path}/a.png" if form == "local file" else as_url(image(seed=3))
    given = url if form in ("text", "input_image") else {"url": url, "detail": "low"}
    part = {"type": "input_image" if form == "input_image" else "image_url", "image_url": given}
    renderer = build(allowed_local_media_path=str(tmp_path))
    found = _render(renderer, {"role": "user", "content": [part]})
    assert found.token_ids == _render(renderer, _message(image(seed=3))).token_ids
    assert renderer.mm_cache.num_hits == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url"}, r"messages\[0\].content\[0\] needs an image_url"),
        ({"type": "image_url", "image_url": {"url": 3}}, "needs an image_url"),
        ({"type": "image_url", "image_url": {"url": "data:;base64,aGk="}}, r"messages\[0\].content\[0\]: not an image"),
        ({"type": "image_url", "image_url": {"url": "data:;base64,?"}}, r"content\[0\]: the data URL is not valid"),
        ({"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}, "--allowed-media-domains"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "--allowed-local-media-path"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "text and images only"),
        ({"type": "text", "text": "<|image_pad|>"}, "no text may contain"),
    ],
)
def test_error_for_an_invalid_part_names_the_fault(build, part, message):
    content = [part] if part["type"] != "text" else [part, _image_part(image())]
    with pytest.raises(RequestError, match=message) as caught:
        _render(build(), {"role": "user", "content": content})
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_more_images_than_allowed_are_rejected(build):
    renderer = build(limit_mm_per_prompt={"image": 2})
    assert _render(renderer, _message(image(), image()))
    with pytest.raises(RequestError, match=r"At most 2 image\(s\)"):
        _render(renderer, _message(image(), image()), _message(image()))


def test_images_beyond_the_models_context_are_not_processed(build):
    renderer = build(limit_mm_per_prompt={"image": 20})
    renderer.prompts.max_model_len = 10
    images = [image(56, 56, seed=seed) for seed in range(20)]
    with pytest.raises(RequestError, match="first 3 of 20 images have 12 tokens"):
        _render(renderer, _message(*images))
    assert renderer.mm_cache.num_queries == 3


async def test_a_client_that_leaves_ends_the_processing_of_its_images(build):
    with ThreadPoolExecutor(1) as executor:
        renderer = build(executor=executor, limit_mm_per_prompt={"image": 20})
        images = [image(56, 56, seed=seed) for seed in range(20)]
        rendering = asyncio.create_task(render_with_images(renderer, [_message(*images)], ChatOptions()))
        while not renderer.mm_cache.num_queries:
            await asyncio.sleep(0)
        rendering.cancel()
        await asyncio.wait([rendering])
    assert renderer.mm_cache.num_queries < 20


async def test_images_are_held_bytes_until_they_are_processed(build):
    admission = Admission(LimitsConfig(max_held_bytes=1000))
    messages = [_message(image(56, 56))]
    with admission.hold(0) as lease:
        assert await build().load_images(messages, lease)
        assert admission.num_held_bytes == 0
        with admission.hold(999), pytest.raises(OverloadedError, match="of at most 1000 bytes"):
            await build().load_images(messages, lease)
        assert admission.num_held_bytes == 0


def test_images_that_are_processed_together_are_limited_together(build):
    """Images of different sizes are processed together, with all their pixels in memory."""
    images = [image(100, 60), image(30, 300, seed=1)]
    with pytest.raises(RequestError, match="30x300 pixels, more than 4000 in all"):
        _render(build("llava_next", max_image_pixels=10_000), _message(*images))
    assert _tensors(_render(build("llava_next", max_image_pixels=15_000), _message(*images)))


@pytest.mark.parametrize(
    ("settings", "size", "options", "message"),
    [
        ({"max_image_pixels": 3000}, (56, 56), {}, r"messages\[0\].content\[0\]: the image has 56x56 pixels"),
        ({}, (2000, 4), {}, "aspect ratio"),
        ({}, (56, 56), {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"mm_processor_kwargs": {"size": "large"}}, (56, 56), {}, "image processor failed"),
    ],
    ids=["pixels", "proportions", "truncation", "the operator's settings"],
)
def test_an_image_that_cannot_be_processed_is_a_request_error(build, settings, size, options, message):
    with pytest.raises(RequestError, match=message):
        _render(build(**settings), _message(Image.new("RGB", size)), **options)


def test_settings_of_the_operator_apply(build):
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}
    plain = len(_render(build(), _message(image(112, 112))).token_ids)
    by_operator = len(_render(build(mm_processor_kwargs={"size": size}), _message(image(112, 112))).token_ids)
    assert by_operator == plain - 15


def test_without_cache_memory_no_image_is_kept(build):
    renderer = build(mm_processor_cache_gb=0)
    for _ in range(2):
        _render(renderer, _message(image()))
    assert (len(renderer.mm_cache), renderer.mm_cache.num_hits) == (0, 0)


def test_the_least_recently_used_image_is_evicted_first():
    cache = BoundedCache[str, bytes](250, len)
    for name in "abc":
        cache.put(name, bytes(100))
        cache.use("a")
    assert [bool(cache.use(name)) for name in "abc"] == [True, False, True]
    assert cache.num_bytes == 200
    cache.put("large", bytes(251))
    assert (len(cache), cache.num_bytes) == (2, 200)


async def test_the_cache_is_cleared_in_the_thread_that_processes_images(folder_of):
    path = folder_of("qwen2_vl")
    with Renderer(ModelFiles(path, path), RendererConfig()) as renderer:
        await render_with_images(renderer, [_message(image())], ChatOptions())
        assert len(renderer.mm_cache) == 1
        release, begun = threading.Event(), threading.Event()
        renderer._mm_executor.submit(lambda: (begun.set(), release.wait(60)))
        assert begun.wait(60)
        clearing = asyncio.ensure_future(renderer.clear_mm_cache_async())
        while renderer.pools.owned["mm"].num_waiting != 1:
            await asyncio.sleep(0)
        assert len(renderer.mm_cache) == 1, "an image is being processed"
        release.set()
        await clearing
        assert (len(renderer.mm_cache), renderer.mm_cache.num_bytes) == (0, 0)


def test_processors_are_loaded_from_every_file_format_on_the_hub(build, folder_of, tmp_path):
    """A template in chat_template.json, an older class name, and the files that transformers 5 writes."""
    plain = build("qwen2_vl")
    wanted = _render(plain, _message("Look: ", image(100, 60)))
    for form in ("old", "new"):
        folder = tmp_path / form
        folder.mkdir()
        for file in folder_of("qwen2_vl").iterdir():
            if file.name not in ("chat_template.jinja", "preprocessor_config.json"):
                (folder / file.name).symlink_to(file)
        settings = json.loads((folder_of("qwen2_vl") / "preprocessor_config.json").read_text())
        template = (folder_of("qwen2_vl") / "chat_template.jinja").read_text()
        if form == "old":
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
            settings["image_processor_type"] = "Qwen2VLImageProcessorFast"
            (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        else:
            (folder / "chat_template.jinja").write_text(template)
            own = plain.vision._images._processor.image_processor.to_dict()
            nested = {"processor_class": "Qwen2VLProcessor", "image_processor": own}
            (folder / "processor_config.json").write_text(json.dumps(nested))
        renderer = Renderer(ModelFiles(folder, folder), RendererConfig(), executor=InlineExecutor())
        found = _render(renderer, _message("Look: ", image(100, 60)))
        assert found.token_ids == wanted.token_ids
        assert np.array_equal(_tensors(found)["pixel_values"], _tensors(wanted)["pixel_values"])


def test_without_images_the_plain_renderer_is_used(folder_of):
    path = folder_of("qwen2_vl")
    with Renderer(ModelFiles(path, path), RendererConfig(limit_mm_per_prompt={"image": 0})) as renderer:
        assert renderer.vision is None
        with pytest.raises(RequestError, match="served for text only"):
            renderer.render_chat([_message(image())], ChatOptions())
    with Renderer(ModelFiles(path, path), RendererConfig()) as renderer:
        assert renderer.vision is not None


def test_a_missing_processor_fails_the_start(folder_of, tmp_path):
    for file in folder_of("llava").iterdir():
        if not file.name.startswith("preprocessor"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(TokenizerLoadError, match="cannot load the image processor"):
        Renderer(ModelFiles(tmp_path, tmp_path), RendererConfig())
