/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The raw flavour of the two programs for all system calls, for kernels without the helper that finds the registers
 * (before 5.15): here they are at hand. Compiled behind events.bpf.c, which has all the rest, and only where needed.
 */
int raw_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u32 *role, number = ctx->args[1];
	struct call *call = looked_at(number, &role);
	struct registers regs;

	if (!call)
		return 0;
	bpf_probe_read_kernel(&regs, sizeof(regs), (const void *)ctx->args[0]);
	return entered(number, call, role, &regs);
}

int raw_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 *role, number = 0;
	struct call *call;

	bpf_probe_read_kernel(&number, sizeof(number), (const void *)(ctx->args[0] + SYSCALL_NUMBER_OFFSET));
	call = looked_at(number, &role);
	return call ? returned(number, ctx->args[1], call, role) : 0;
}
