"""Causes about the model: its configuration, weights, tokenizer and adapters."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.phase import CONFIGURATION

MODEL: Final = (
    KnownCause(
        "max-model-len-too-long",  # vllm#2565
        "--max-model-len is more than the model was made for",
        "is greater than the derived max_model_len",
        "Lower --max-model-len to the value in the message, or extend the model with rope scaling in --hf-overrides.",
        phase=CONFIGURATION,
    ),
    KnownCause(
        "batched-tokens-too-few",  # trl#3788
        "--max-num-batched-tokens is too small",
        "max_num_batched_tokens … is smaller than max_model_len | "
        "max_num_batched_tokens … must be greater than or equal to max_num_seqs",
        "Raise --max-num-batched-tokens, lower --max-model-len or --max-num-seqs, or leave chunked prefill on.",
    ),
    KnownCause(
        "not-divisible",  # vllm#17327
        "the model cannot be split over so many GPUs",
        "must be divisible by tensor parallel size | must be divisible by tensor model parallel size | "
        "must be divisible by ep_size | is not aligned with the quantized weight shape | "
        "^AssertionError: … is not divisible by | is not divisible by …block_ | is not divisible by …min_thread_ | "
        "must divisible by BLOCK_SIZE | partition… not divisible by | not divisible by tp_size | "
        "not divisible by weight quantization | heads is not divisible by",
        "The --tensor-parallel-size must divide the heads, and split weights into whole blocks of the quantization. "
        "Often 1, 2 or 4 do. Use the other GPUs with --pipeline-parallel-size or --data-parallel-size.",
    ),
    KnownCause(
        "transformers-too-new",  # vllm#52768
        "this vLLM does not know the configuration of a newer transformers",
        "AmbiguousGlobalPerLayerAttributeError | is a per-layer attribute and may vary across layers",
        "Run `pip install 'transformers<5.15'`, or use vLLM 0.28 or newer.",
    ),
    KnownCause(
        "transformers-too-old",  # vllm#13446
        "the installed transformers does not know this model type",
        "Transformers does not recognize this architecture",
        "Update vLLM and transformers together. For your own model type, set --trust-remote-code or --hf-overrides.",
    ),
    KnownCause(
        "model-type-missing",  # vllm-omni#2170
        "the model's config.json does not say what the model is",
        "Should have a `model_type` key in its config.json | No model architectures are specified",
        "Serve an adapter with --lora-modules and its base model. Give other models a complete config.json.",
    ),
    KnownCause(
        "remote-code-not-importable",  # vllm#8745
        "the model's own Python code cannot be imported, often for a dot in its folder's name",
        "No module named 'transformers_modules",
        "Remove dots from the folder's name, delete HF_HOME/modules, and start again.",
    ),
    KnownCause(
        "architecture-unsupported",  # HunyuanImage-3.0#54
        "this vLLM does not know the model's architecture",
        "Model architectures … are not supported for now | Cannot find model module",
        "Use a newer vLLM, a converted checkpoint (-hf), or --model-impl transformers.",
        is_general=True,
    ),
    KnownCause(
        "model-class-missing",  # vllm#20198
        "vLLM has no class for this model, and the one of transformers does not work in vLLM",
        "has no vLLM implementation and the Transformers implementation is not compatible",
        "Use a newer vLLM, which may have a class for it, with the transformers that the model's page names. If the "
        "page names a plugin or image of vLLM, use that.",
    ),
    KnownCause(
        "model-code-broken",  # vllm#17309
        "vLLM's code for this model cannot be imported",
        "failed to be inspected | Error in inspecting model architecture",
        "Read the traceback's reason, often a missing or old package. Install vLLM into a new environment.",
        is_general=True,
    ),
    KnownCause(
        "remote-code-not-trusted",  # vllm#6215
        "the model brings Python code of its own",
        "requires you to execute the configuration file | contains custom code which must be executed | "
        "requires you to execute custom code | set the option `trust_remote_code=True`",
        "Read that code, then set --trust-remote-code. Pin --revision and --code-revision.",
    ),
    KnownCause(
        "gguf-unsupported",  # vllm#30691
        "this vLLM does not read GGUF, or does not know the GGUF file's model",
        ".gguf' is not a valid JSON file | Invalid repository ID or local directory specified: '….gguf' | "
        "Repo id must be in the form…-GGUF: | GGUF model with architecture … is not supported | "
        "Unknown gguf model_type | ailed to map GGUF parameters",
        "Install vLLM's plugin (pip install vllm-gguf-plugin), or serve the file with `llama-server` on PATH and "
        "--engine embedded. For an unknown model, set --hf-config-path to the original model, or use its safetensors.",
    ),
    KnownCause(
        "weights-damaged",  # vllm#26161
        "a file of the model is incomplete or damaged",
        "Error while deserializing header | SafetensorError | invalid load key | PytorchStreamReader failed | "
        "HeaderTooLarge | MetadataIncompleteBuffer | MemoryError in parse_safetensors_file_metadata | "
        "ModelConfig…Expecting value: line 1 column 1 (char 0) | is not a valid JSON file | "
        "Consistency check failed: file should be",
        "Compare the file that the message names with its source (size, SHA-256). If they differ, copy it again. A "
        "file of about 130 bytes is a Git LFS pointer, which `git lfs pull` replaces.",
    ),
    KnownCause(
        "weights-missing",  # vllm#4333
        "the model's folder has no weights that vLLM reads",
        "Cannot find any model weights with | No such file or directory: ….safetensors | "
        "Weight files referenced in index but missing",
        "Compare the folder's files with the index and with the model's source, and copy what is missing. For other "
        "formats, set --load-format. For GGUF, install vllm-gguf-plugin, or give --engine embedded.",
    ),
    KnownCause(
        "weights-do-not-match",  # vllm#23025
        "names or shapes of the weights do not fit the model's code",
        "weights were not initialized from checkpoint | There is no module or parameter named | KeyError: 'layers. | "
        "KeyError: 'model. | KeyError: 'language_model. | Attempted to load weight | Unsupported weight name | "
        "size mismatch for |  in load_weights() | KeyError: '….weight |  in …weight_loader() |  in load_…_weight()",
        "For a new model, use a newer vLLM. For a quantized or fine-tuned one, check config.json (architectures, "
        "quantization_config, tie_word_embeddings) against the files.",
    ),
    KnownCause(
        "quantization-mismatch",  # vllm#13283
        "--quantization does not fit the checkpoint",
        "Quantization method specified in the model config | Unknown quantization method | "
        "Cannot find the config file for",
        "Leave out --quantization, so that vLLM reads the method from config.json.",
    ),
    KnownCause(
        "tokenizer-missing",  # QwenPaw#3084
        "the tokenizer cannot be loaded",
        "Can't load tokenizer for | TypeError: not a string | Tokenizer class … does not exist | "
        "Couldn't instantiate the backend tokenizer | data did not match any variant of untagged enum | "
        "not recognize the tokenizer",
        "Copy tokenizer.json or tokenizer.model from the original model, or name that model with --tokenizer. For "
        "Mistral's format, set --tokenizer-mode mistral. For new formats, update transformers.",
    ),
    KnownCause(
        "processor-missing",  # vllm#6934
        "the processor of images, video or audio cannot be loaded",
        "Can't load image processor for | Can't load feature extractor for | Can't load video processor for | "
        "does not appear to have a file named preprocessor_config.json",
        "Copy preprocessor_config.json and processor_config.json from the original model. To serve only text, set "
        "--language-model-only.",
    ),
    KnownCause(
        "vocabulary-not-downloaded",  # vllm#22525
        "the vocabulary of gpt-oss cannot be downloaded",
        "openai_harmony.HarmonyError | error downloading or loading vocab file",
        "Check the network. Without one, set TIKTOKEN_ENCODINGS_BASE to a folder with the downloaded vocabularies. "
        "Only if the message speaks of a hash, delete the file (in TIKTOKEN_RS_CACHE_DIR or /tmp/tiktoken-rs-cache).",
    ),
    KnownCause(
        "chat-template-missing",  # vllm#47600
        "--chat-template names neither a file nor a template",
        "The supplied chat template | appears path-like, but doesn't exist",
        "Give the path inside the container, or mount the file.",
    ),
    KnownCause(
        "encoder-cache-too-small",  # vllm#34040
        "an image, video or audio does not fit into the encoder's cache",
        "exceeds the pre-allocated encoder cache size",
        "Raise --max-num-batched-tokens, or limit the input with --mm-processor-kwargs and --limit-mm-per-prompt.",
    ),
    KnownCause(
        "placeholders-do-not-match",  # vllm#14897
        "a prompt has another number of image tokens than its images need",
        "Attempted to assign",
        "Raise --max-model-len above the longest prompt with its images. If the prompt was not cut, use the versions "
        "of vLLM and transformers on the model's page.",
    ),
    KnownCause(
        "lora-rank",  # vllm#2847
        "an adapter's rank is more than --max-lora-rank",
        "is greater than max_lora_rank",
        "Set --max-lora-rank to the rank (r) in the adapter's adapter_config.json.",
    ),
    KnownCause(
        "lora-unsupported",  # vllm#9280
        "the adapter changes parts of the model that vLLM does not serve",
        "is unsupported LoRA weight | vLLM only supports modules_to_save being None | expected target modules in",
        "Merge the adapter into the model, or train it without modules_to_save, lm_head and embed_tokens.",
    ),
    KnownCause(
        "lora-missing",  # vllm#30690
        "an adapter was not found",
        "No adapter found for | Loading lora … failed | No such file or directory: '…adapter_config.json'",
        "Give --lora-modules a folder with adapter_config.json, or a repository that you may read.",
    ),
    KnownCause(
        "configuration-refused",  # vllm-omni#2170
        "vLLM refuses the configuration",
        "validation error for | validation errors for | () of …/vllm/config/ | () of …/arg_utils.py | "
        "() of …/vllm/platforms/",
        "Correct the flags that the message names, or the model's config.json.",
        is_general=True,
    ),
)
