#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# bash scripts/docker_start.sh [docker_image] [data_dir] [model_dir]: see run_docker.sh
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../run_docker.sh" "$@"
