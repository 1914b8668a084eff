"""Loads a pooling model: its transformer, and the head that its files and `--pooler-config` define."""

import inspect
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from server.engine.pooling.heads import ClassifierHead, EmbeddingHead, Encoder, PoolingHead
from server.engine.pooling.projection import Projection, classifier_activation, load_colbert, load_dense
from server.terms.config import EngineConfig, ModelFiles, PoolingTask, SeqPoolingType
from server.terms.types import PoolingInfo
from server.text.model_files import ModelKind, read_object, read_sentence_files

_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm")
"""Model types whose positions begin after the padding token's id, so that fewer tokens fit."""


class PoolingModel:
    """A loaded model in evaluation mode, with what the engine core and the API process need to know of it."""

    def __init__(self, files: ModelFiles, config: EngineConfig, kind: ModelKind) -> None:
        """Loads the model. The message of an error has one line.

        Raises:
            EngineStartError: the folder has a fault, or the model does not support a setting.
        """
        self._files = files
        self._path = files.path
        self._config = config
        self._model_config = load_config(files.path, config)
        self._text = self._model_config.get_text_config(decoder=True)
        self._is_encoder = self._model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        self._sentence = read_sentence_files(files.path)
        self.defaults = config.pooler
        self.encoder: Encoder
        self._output_size: int = self._text.hidden_size
        self._num_labels = 0
        self._uses_sep_token = bool(getattr(self._model_config, "use_sep_token", True))
        if self._model_config.is_encoder_decoder:
            raise EngineStartError(
                f"the model in {self._path} has an encoder and a decoder, which pooling does not support"
            )
        self.head = self._load_head(kind)
        self.info = self._describe()
        self.max_model_len = self._find_max_model_len()

    def _describe(self) -> PoolingInfo:
        task = self._config.pooler.task or self.head.tasks[0]
        if task not in self.head.tasks:
            raise EngineStartError(
                f"--pooler-config.task {task} does not fit the model in {self._path}, which supports "
                f"{', '.join(self.head.tasks)}"
            )
        dims = getattr(self._model_config, "matryoshka_dimensions", None) or ()
        labels = getattr(self._model_config, "id2label", None) or {}
        return PoolingInfo(
            task=task,
            supported_tasks=self.head.tasks,
            embedding_size=self._output_size,
            num_labels=self._num_labels,
            id2label={int(key): str(label) for key, label in labels.items()} if self._num_labels else {},
            is_matryoshka=bool(dims) or bool(getattr(self._model_config, "is_matryoshka", False)),
            matryoshka_dimensions=tuple(int(dim) for dim in dims),
            uses_sep_token=self._uses_sep_token,
            does_lower_case=self._sentence.does_lower_case,
        )

    def _load_head(self, kind: ModelKind) -> PoolingHead:
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
                self._num_labels = self._model_config.num_labels
                return self._classifier_head("token_classify")
        names = ", ".join(self._model_config.architectures or [])
        raise EngineStartError(
            f"the model in {self._path} ({names}) is not a pooling model: use --convert embed or --convert classify"
        )

    def _load_embedding(self) -> PoolingHead:
        sequence_type = self._find_sequence_type()
        if self._sentence.has_pooling and self.defaults.use_activation is None:
            self.defaults = replace(self.defaults, use_activation=self._sentence.normalizes)
        model_class = _class_of(AutoModel, self._model_config)
        has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters if model_class else False
        self.encoder = self._load(AutoModel, **({"add_pooling_layer": False} if has_pooler else {}))
        return self._embedding_head(sequence_type, load_dense(self._sentence.dense_folders, self.encoder.model.device))

    def _embedding_head(self, sequence_type: SeqPoolingType | None, projection: Projection | None) -> PoolingHead:
        if projection is not None:
            self._output_size = projection.out_features
        return EmbeddingHead(self.encoder, sequence_type=sequence_type, projector=projection)

    def _load_classifier(self) -> PoolingHead:
        tokens = getattr(self._model_config, "classifier_from_token", None)
        if tokens:
            return self._load_token_classifier(tokens)
        self._num_labels = self._model_config.num_labels
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
        self._uses_sep_token = bool(getattr(self._model_config, "use_sep_token", False))
        model = self._load(AutoModelForCausalLM).model
        rows = model.get_output_embeddings().weight[_token_ids(tokens, self._files.tokenizer_path)].float()
        is_pair = getattr(self._model_config, "is_original_qwen3_reranker", False)
        if is_pair or getattr(self._text, "method", None) == "from_2_way_softmax":
            rows = rows[1:2] - rows[0:1]
        self._num_labels = len(rows)
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
        return Encoder(load_weights(auto_class, self._path, self._config, self._model_config, **options))

    def _find_sequence_type(self) -> SeqPoolingType:
        """Returns the user's setting, or else that of sentence-transformers' files, or else a default."""
        given, sentence = self._config.pooler.sequence_type, self._sentence
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

    def _find_max_model_len(self) -> int:
        """The user's limit, or else the smallest one of model, tokenizer and sentence-transformers' files."""
        own = own_max_model_len(self._model_config) or DEFAULT_MAX_MODEL_LEN
        if self._model_config.model_type in _POSITIONS_BEHIND_PADDING:
            own -= (self._model_config.pad_token_id or 0) + 1
        limits = [own, self._sentence.max_seq_length, _tokenizer_limit(self._files.tokenizer_path)]
        derive_max_model_len(self._model_config, self._config, own)
        return self._config.max_model_len or min(limit for limit in limits if limit is not None)


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
