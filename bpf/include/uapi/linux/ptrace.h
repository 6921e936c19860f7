/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* bcc wants a pt_regs for programs on probes; ours read registers through ../../../registers.h. */
#ifndef OBSERVE_UAPI_PTRACE_H
#define OBSERVE_UAPI_PTRACE_H

struct pt_regs {
	unsigned long words[21];
};

#endif
