# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The engine below main.py: devices, data, training, inference, logs and checkpoints.

The walk goes in one direction: main.py parses and checks the options, then calls, in this order,
device, distributed, logger, datasets, dataloaders, models, optimizers, checkpoint, training.
Importing this package imports none of them.
"""
