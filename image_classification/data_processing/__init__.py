# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From what a user has (archives, folders) to a checked data set that main.py trains on."""
