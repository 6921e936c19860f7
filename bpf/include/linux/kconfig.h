/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc includes it before anything else. */
#define CONFIG_BPF_SYSCALL 1
