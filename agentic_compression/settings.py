"""Environment variables, read in this one place, and the folders of one state root (``ACF_HOME``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "get_settings"]


class Settings(BaseSettings):
    """Settings of this process. Secrets never print: they are ``SecretStr``."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    home: Path = Field(
        default=Path(), validation_alias="ACF_HOME", description="state root; the working folder by default"
    )
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    hf_endpoint: str = Field(default="https://huggingface.co", validation_alias="HF_ENDPOINT")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")
    planner_model: str = Field(
        default="gpt-4o",
        min_length=1,
        max_length=200,
        validation_alias="ACF_PLANNER_MODEL",
        description="asked to plan",
    )
    planner_max_tokens: int = Field(
        default=4000,
        ge=64,
        validation_alias="ACF_PLANNER_MAX_TOKENS",
        description="of one answer, what the model reasons before it included",
    )
    planner_prompt_tokens: int = Field(
        default=12_000,
        ge=500,
        validation_alias="ACF_PLANNER_PROMPT_TOKENS",
        description="of one question, estimated; what does not fit is left out",
    )
    planner_max_calls: int = Field(
        default=100, ge=0, validation_alias="ACF_PLANNER_MAX_CALLS", description="to the language model, a study"
    )
    planner_max_usd: float = Field(
        default=5.0,
        ge=0,
        validation_alias="ACF_PLANNER_MAX_USD",
        description="for the language model, a study; without effect where the model's price is not known",
    )
    planner_timeout_s: float = Field(
        default=60.0, gt=0, le=240, validation_alias="ACF_PLANNER_TIMEOUT_S", description="of one request"
    )
    planner_min_episodes: int = Field(
        default=10,
        ge=0,
        validation_alias="ACF_PLANNER_MIN_EPISODES",
        description="compressed episodes before the language model may end a study",
    )
    planner_override_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        validation_alias="ACF_PLANNER_OVERRIDE_SHARE",
        description="of the hybrid planner's episodes, the most that may be the language model's own strategies",
    )
    cpu_watts_per_core: float = Field(
        default=15.0,
        gt=0,
        validation_alias="ACF_CPU_WATTS_PER_CORE",
        description="active watts a busy core; used where no energy counter exists",
    )
    grid_country: str = Field(
        default="USA", pattern=r"^[A-Z]{3}$", validation_alias="ACF_GRID_COUNTRY", description="ISO 3166-1 alpha-3"
    )
    grid_region: str | None = Field(
        default=None,
        pattern=r"^[A-Z]{2}-[A-Z0-9]{2,3}$",
        validation_alias="ACF_GRID_REGION",
        description="ISO 3166-2, such as US-CA; taken before the country",
    )
    grid_grams_per_kwh: float | None = Field(default=None, gt=0, validation_alias="ACF_GRID_GRAMS_PER_KWH")
    pue: float = Field(
        default=1.0,
        ge=1,
        validation_alias="ACF_PUE",
        description="power usage effectiveness: energy of the building over that of its machines",
    )
    electricity_price: float | None = Field(
        default=None, ge=0, validation_alias="ACF_ELECTRICITY_PRICE", description="a kWh; no costs when not set"
    )
    electricity_currency: str = Field(
        default="USD", pattern=r"^[A-Z]{3}$", validation_alias="ACF_ELECTRICITY_CURRENCY", description="ISO 4217"
    )
    gpu_watts: float | None = Field(
        default=None,
        gt=0,
        validation_alias="ACF_GPU_WATTS",
        description="of a busy GPU; used where nothing can read the GPU's energy",
    )
    serve_api_keys: SecretStr | None = Field(
        default=None,
        validation_alias="ACF_SERVE_API_KEYS",
        description="keys that the model server accepts, separated by commas; in clear or as sha256:<hex>",
    )
    serve_cors_origins: str = Field(
        default="",
        validation_alias="ACF_SERVE_CORS_ORIGINS",
        description="origins that browsers may ask the model server from, separated by commas; none by default",
    )
    serve_requests_per_minute: int = Field(
        default=0,
        ge=0,
        validation_alias="ACF_SERVE_REQUESTS_PER_MINUTE",
        description="of one key, or one address without keys; 0 for no limit",
    )
    serve_failures_per_minute: int = Field(
        default=30,
        ge=0,
        validation_alias="ACF_SERVE_FAILURES_PER_MINUTE",
        description="requests of one address with a wrong key or none; 0 for no limit",
    )
    serve_trusted_proxies: str = Field(
        default="",
        validation_alias="ACF_SERVE_TRUSTED_PROXIES",
        description="addresses and networks of proxies whose X-Forwarded-For is believed, separated by commas",
    )
    serve_max_body_bytes: int = Field(
        default=1_000_000, ge=1_000, validation_alias="ACF_SERVE_MAX_BODY_BYTES", description="of one request"
    )
    serve_max_new_tokens: int = Field(
        default=2048, ge=1, validation_alias="ACF_SERVE_MAX_NEW_TOKENS", description="of one answer"
    )
    serve_slots: int = Field(
        default=16, ge=1, le=256, validation_alias="ACF_SERVE_SLOTS", description="answers decoded at once, a model"
    )
    serve_queue: int = Field(
        default=256, ge=0, validation_alias="ACF_SERVE_QUEUE", description="requests that may wait for a slot, a model"
    )
    serve_cache_tokens: int = Field(
        default=0,
        ge=0,
        validation_alias="ACF_SERVE_CACHE_TOKENS",
        description="of a model's cache: requests at once times the longest, rounded up to 256; may lie below its "
        "context length, which sets it when 0",
    )
    serve_engine: Literal["auto", "transformers", "llama.cpp", "vllm"] = Field(
        default="auto",
        validation_alias="ACF_SERVE_ENGINE",
        description="of every model; auto takes what a folder's files ask for, and vllm runs only when named",
    )
    serve_gpu_share: float = Field(
        default=0.9,
        gt=0,
        le=1,
        validation_alias="ACF_SERVE_GPU_SHARE",
        description="of the GPU's memory, what one vLLM engine takes when it loads, whatever its model needs",
    )
    serve_max_models: int = Field(
        default=4, ge=1, validation_alias="ACF_SERVE_MAX_MODELS", description="loaded at once"
    )
    serve_memory_gb: float | None = Field(
        default=None,
        gt=0,
        validation_alias="ACF_SERVE_MEMORY_GB",
        description="of all loaded models, in 10^9 bytes; what the machine has free when not set",
    )
    serve_idle_s: float = Field(
        default=600.0, ge=0, validation_alias="ACF_SERVE_IDLE_S", description="until an unused model unloads; 0: never"
    )
    serve_load_timeout_s: float = Field(
        default=300.0, gt=0, validation_alias="ACF_SERVE_LOAD_TIMEOUT_S", description="for loading a model"
    )
    serve_follow_s: float = Field(
        default=10.0, gt=0, validation_alias="ACF_SERVE_FOLLOW_S", description="between two looks at an alias"
    )
    serve_drain_s: float = Field(
        default=30.0, ge=1, validation_alias="ACF_SERVE_DRAIN_S", description="for answers under way at shutdown"
    )

    @property
    def root(self) -> Path:
        """The absolute state root."""
        return self.home.expanduser().resolve()

    @property
    def experiments(self) -> Path:
        """``data/experiments``: one folder a study, derived from the history."""
        return self.root / "data" / "experiments"

    @property
    def artifacts(self) -> Path:
        """``data/artifacts``: the artifact store; checkpoints, evaluations and datasets by content key."""
        return self.root / "data" / "artifacts"

    @property
    def checkpoints(self) -> Path:
        """``data/artifacts/checkpoints``."""
        return self.artifacts / "checkpoints"

    @property
    def mlflow_uri(self) -> str:
        """SQLite tracking and registry store."""
        return f"sqlite:///{self.root / 'data' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """``data/artifacts/mlflow``: explicit artifact location of every experiment."""
        return self.artifacts / "mlflow"

    @property
    def workspace(self) -> Path:
        """``workspace``: the memory of experiments."""
        return self.root / "workspace"

    @property
    def zenml_config(self) -> Path:
        """``.zenml``: ZenML's own database and stacks."""
        return self.root / ".zenml"

    @property
    def logs(self) -> Path:
        """``logs``."""
        return self.root / "logs"


@cache
def get_settings() -> Settings:
    """The settings of this process, read once. Tests call ``get_settings.cache_clear()``."""
    return Settings()
