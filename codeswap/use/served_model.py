"""What MLflow runs to load a served model (it executes this file by itself)."""

from mlflow.models import set_model

from codeswap.use.mlflow_model import CodeSwapModel

set_model(CodeSwapModel())
