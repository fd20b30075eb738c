# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Examines machine and software before a run, and says what to change (main.py --doctor)."""
