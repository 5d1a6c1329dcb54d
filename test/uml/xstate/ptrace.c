/*
 * A wrapper of ptrace(2), which user-mode Linux runs its processes with, for
 * processors whose registers it does not know all of.
 *
 * It saves and restores as many bytes of the extended registers as it knew when
 * it was built. Linux on the host takes either all of them or none, so on a
 * processor with AVX-512 or AMX it fails with EFAULT. Restore what it gives, and
 * leave the rest as it is: the tests' processes are told not to use it.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum {
	PEEK_TEXT = 1,
	PEEK_USER = 3,
	GET_REGSET = 0x4204,
	SET_REGSET = 0x4205,
	XSTATE = 0x202,
};

static char registers[1 << 16];

/* Not by way of errno, which the kernel's signal handlers change. */
static long call(long request, long pid, void *addr, void *data)
{
	register void *r10 __asm__("r10") = data;
	long result = SYS_ptrace;
	__asm__ volatile("syscall" : "+a"(result) : "D"(request), "S"(pid), "d"(addr), "r"(r10) : "rcx", "r11", "memory");
	return result;
}

long ptrace(int request, ...)
{
	va_list args;
	va_start(args, request);
	long pid = va_arg(args, int);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	/* What the C library returns, the system call writes. */
	long word = 0;
	int peek = request >= PEEK_TEXT && request <= PEEK_USER;
	long result = call(request, pid, addr, peek ? &word : data);
	if (result == -EFAULT && request == SET_REGSET && (long)addr == XSTATE) {
		struct iovec *part = data, whole = { registers, sizeof(registers) };
		result = call(GET_REGSET, pid, addr, &whole);
		if (result == 0) {
			memcpy(registers, part->iov_base, part->iov_len);
			result = call(SET_REGSET, pid, addr, &whole);
		}
	}
	if (result < 0) {
		errno = (int)-result;
		return -1;
	}
	if (peek)
		errno = 0;
	return peek ? word : result;
}
