"""Loads a pooling model: its transformer, and the head that its files and `--pooler-config` define."""

import inspect
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from base.errors import EngineStartError
from server.engine.model_loading import (
    DEFAULT_MAX_MODEL_LEN,
    derive_max_model_len,
    load_config,
    load_weights,
    own_max_model_len,
)
from server.engine.pooling.encoder import Encoder
from server.engine.pooling.heads import ClassifierHead, EmbeddingHead, PoolingHead
from server.engine.pooling.projection import Projection, classifier_activation, load_colbert, load_dense
from server.terms.config import EngineConfig, ModelFiles, PoolerConfig, PoolingTask, SeqPoolingType
from server.terms.types import PoolingInfo
from server.text.model_files.model_kind import ModelKind
from server.text.model_files.sentence_files import SentenceFiles, read_object, read_sentence_files

_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")
"""Model types whose positions begin after the padding token's id, so that fewer tokens fit."""


class PoolingModel(NamedTuple):
    """A loaded model, with the data about the model that the engine core and the API process need."""

    encoder: Encoder
    head: PoolingHead
    info: PoolingInfo
    defaults: PoolerConfig
    max_model_len: int


def load_pooling_model(files: ModelFiles, config: EngineConfig, kind: ModelKind) -> PoolingModel:
    """Loads the model in evaluation mode. The message of an error has one line.

    Raises:
        EngineStartError: the folder has a fault, or the model does not support a setting.
    """
    model_config = load_config(files.path, config)
    loader = _Loader(files, config, model_config)
    head = loader.load(kind)
    task = _choose_task(head, config.pooler, files.path)
    dims = getattr(model_config, "matryoshka_dimensions", None) or ()
    labels = getattr(model_config, "id2label", None) or {}
    return PoolingModel(
        encoder=loader.encoder,
        head=head,
        info=PoolingInfo(
            task=task,
            supported_tasks=head.tasks,
            embedding_size=loader.output_size,
            num_labels=loader.num_labels,
            id2label={int(key): str(label) for key, label in labels.items()} if loader.num_labels else {},
            is_matryoshka=bool(dims) or bool(getattr(model_config, "is_matryoshka", False)),
            matryoshka_dimensions=tuple(int(dim) for dim in dims),
            uses_sep_token=loader.uses_sep_token,
            does_lower_case=loader.sentence.does_lower_case,
        ),
        defaults=loader.defaults,
        max_model_len=_max_model_len(files, config, model_config, loader.sentence),
    )


class _Loader:
    """Loads one model. The attributes are complete after `load`."""

    def __init__(self, files: ModelFiles, config: EngineConfig, model_config: PreTrainedConfig) -> None:
        self._files = files
        self._path = files.path
        self._config = config
        self._model_config = model_config
        self._text = model_config.get_text_config(decoder=True)
        self._is_encoder = model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        self.sentence = read_sentence_files(files.path)
        self.defaults = config.pooler
        self.encoder: Encoder
        self.output_size: int = self._text.hidden_size
        self.num_labels = 0
        self.uses_sep_token = bool(getattr(model_config, "use_sep_token", True))
        if model_config.is_encoder_decoder:
            raise EngineStartError(
                f"the model in {self._path} has an encoder and a decoder, which pooling does not support"
            )

    def load(self, kind: ModelKind) -> PoolingHead:
        """Loads `encoder`, and returns the head."""
        match kind.head:
            case "embed":
                return self._load_embedding()
            case "colbert":
                self.encoder = self._load(AutoModel)
                return self._embedding_head(None, load_colbert(self._path, self.encoder.model.device))
            case "classify":
                return self._load_classifier()
            case "token_classify":
                self.encoder = self._load(AutoModelForTokenClassification)
                self.num_labels = self._model_config.num_labels
                return self._classifier_head("token_classify")
        names = ", ".join(self._model_config.architectures or [])
        raise EngineStartError(
            f"the model in {self._path} ({names}) is not a pooling model: use --convert embed or --convert classify"
        )

    def _load_embedding(self) -> PoolingHead:
        sequence_type = self._sequence_type(self.sentence)
        if self.sentence.has_pooling and self.defaults.use_activation is None:
            self.defaults = replace(self.defaults, use_activation=self.sentence.normalizes)
        model_class = _class_of(AutoModel, self._model_config)
        has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters if model_class else False
        self.encoder = self._load(AutoModel, **({"add_pooling_layer": False} if has_pooler else {}))
        return self._embedding_head(sequence_type, load_dense(self.sentence.dense_folders, self.encoder.model.device))

    def _embedding_head(self, sequence_type: SeqPoolingType | None, projection: Projection | None) -> PoolingHead:
        if projection is not None:
            self.output_size = projection.out_features
        return EmbeddingHead(self.encoder, sequence_type=sequence_type, projector=projection)

    def _load_classifier(self) -> PoolingHead:
        tokens = getattr(self._model_config, "classifier_from_token", None)
        if tokens:
            return self._load_token_classifier(tokens)
        self.num_labels = self._model_config.num_labels
        self.encoder = self._load(AutoModelForSequenceClassification)
        model = self.encoder.model
        if self._is_encoder or not hasattr(model, "score"):
            if self._config.pooler.sequence_type is not None:
                raise EngineStartError("this classifier has its own pooling: omit --pooler-config.pooling_type")
            return self._classifier_head("classify")
        self.encoder = Encoder(model.base_model)
        return self._classifier_head("classify", model.score.weight)

    def _load_token_classifier(self, tokens: Seq[str]) -> PoolingHead:
        """Makes a classifier from a language model that answers with a word, such as yes (Qwen3-Reranker)."""
        self.uses_sep_token = bool(getattr(self._model_config, "use_sep_token", False))
        model = self._load(AutoModelForCausalLM).model
        rows = model.get_output_embeddings().weight[_token_ids(tokens, self._files.tokenizer_path)].float()
        is_pair = getattr(self._model_config, "is_original_qwen3_reranker", False)
        if is_pair or getattr(self._text, "method", None) == "from_2_way_softmax":
            rows = rows[1:2] - rows[0:1]
        self.num_labels = len(rows)
        self.encoder = Encoder(model.base_model)
        return self._classifier_head("classify", rows)

    def _classifier_head(self, task: PoolingTask, weight: Tensor | None = None) -> PoolingHead:
        return ClassifierHead(
            self.encoder,
            classifier_activation(self._model_config),
            task,
            weight=None if weight is None else weight.detach(),
            sequence_type=self._config.pooler.sequence_type or "LAST",
        )

    def _load(self, auto_class: Any, **options: Any) -> Encoder:
        if hasattr(self._model_config, "reference_compile"):
            self._model_config.reference_compile = False
        return Encoder(load_weights(auto_class, self._path, self._config, self._model_config, **options))

    def _sequence_type(self, sentence: SentenceFiles) -> SeqPoolingType:
        """Returns the user's setting, or else that of sentence-transformers' files, or else a default."""
        given = self._config.pooler.sequence_type
        if given is not None:
            return given
        if sentence.unknown_modules:
            raise EngineStartError(
                f"{self._path / 'modules.json'} names {', '.join(sentence.unknown_modules)}, which this engine does "
                "not support. --pooler-config with a pooling_type ignores it"
            )
        if not sentence.has_pooling:
            return "CLS" if self._is_encoder else "LAST"
        if not sentence.pooling_modes:
            raise EngineStartError(
                f"{self._path / 'modules.json'} names a pooling module whose config.json is missing or sets no mode: "
                "copy the folder's files from the model's source, or set a pooling_type in --pooler-config"
            )
        if sentence.pooling_type is None:
            raise EngineStartError(
                f"the model in {self._path} pools by {', '.join(sentence.pooling_modes)}. This engine supports one "
                "of cls, mean and lasttoken. --pooler-config with a pooling_type overrides it"
            )
        return sentence.pooling_type  # type: ignore[return-value]


def _choose_task(head: PoolingHead, pooler: PoolerConfig, path: Path) -> PoolingTask:
    wanted = pooler.task
    if wanted is None:
        return head.tasks[0]
    if wanted not in head.tasks:
        raise EngineStartError(
            f"--pooler-config.task {wanted} does not fit the model in {path}, which supports {', '.join(head.tasks)}"
        )
    return wanted


def _max_model_len(
    files: ModelFiles, config: EngineConfig, model_config: PreTrainedConfig, sentence: SentenceFiles
) -> int:
    """The user's limit, or else the smallest one of model, tokenizer and sentence-transformers' files."""
    own = own_max_model_len(model_config) or DEFAULT_MAX_MODEL_LEN
    if model_config.model_type in _POSITIONS_BEHIND_PADDING:
        own -= (model_config.pad_token_id or 0) + 1
    limits = [own, sentence.max_seq_length, _tokenizer_limit(files.tokenizer_path)]
    derive_max_model_len(model_config, config, own)
    return config.max_model_len or min(limit for limit in limits if limit is not None)


def _tokenizer_limit(path: Path) -> int | None:
    limit = read_object(path / "tokenizer_config.json").get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and 0 < limit < 1 << 31 else None


def _token_ids(tokens: Seq[str], path: Path) -> list[int]:
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as err:  # the tokenizers library raises plain Exception
        raise EngineStartError(f"cannot read {path / 'tokenizer.json'}: {err}") from err
    ids = []
    for token in tokens:
        token_id = tokenizer.token_to_id(token)
        if token_id is None:
            raise EngineStartError(f"config.json's classifier_from_token names {token!r}, which is not a token")
        ids.append(token_id)
    return ids


def _class_of(auto_class: Any, model_config: PreTrainedConfig) -> type | None:
    """Returns the class that an auto class selects, or None if the model's own code defines the class."""
    try:
        found = auto_class._model_mapping[type(model_config)]
    except KeyError:
        return None
    return found if isinstance(found, type) else None
