# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# One file for NVIDIA, Ascend, Cambricon and plain Python images; the base's own PyTorch is kept:
#   docker build -t {docker_image} --build-arg FROM_IMAGE_NAME={base_image} .
ARG FROM_IMAGE_NAME=nvcr.io/nvidia/pytorch:25.01-py3
FROM ${FROM_IMAGE_NAME}
# Bases without PyTorch (docs/docker.md): what is installed there, and where else it is looked for.
ARG TORCH_PACKAGES=""
ARG TORCH_INDEX_URL=""

# Cambricon's images keep PyTorch in this virtual environment; elsewhere there is no such folder.
ENV PATH=/torch/venv3/pytorch/bin:${PATH}
WORKDIR /workspace/image_classification
COPY requirements*.txt ./
COPY scripts/setup_env.sh scripts/
RUN bash scripts/setup_env.sh --sample --in-place
COPY . .
# Again, now for the code: compiles the fast data loader where the image has a compiler.
RUN bash scripts/setup_env.sh --sample --in-place
CMD ["/bin/bash"]
