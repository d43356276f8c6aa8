#include "textflag.h"

// start is what the kernel jumps to; see start_amd64.s.
//
// func start()
TEXT ·start(SB), NOSPLIT|NOFRAME, $0-0
	MOVD $1, R19
signal:
	// rt_sigaction(signal, NULL, &action, 8)
	MOVD R19, R0
	MOVD ZR, R1
	MOVD $·action(SB), R2
	MOVD $8, R3
	MOVD $134, R8
	SVC
	MOVD ·action(SB), R4
	CMP  $1, R4 // SIG_IGN
	BNE  next
	SUB  $1, R19, R5
	MOVD $1, R6
	LSL  R5, R6, R6
	MOVD ·ignored(SB), R7
	ORR  R6, R7, R7
	MOVD R7, ·ignored(SB)
next:
	MOVD ZR, ·action(SB)
	ADD  $1, R19, R19
	CMP  $64, R19
	BLE  signal

	// rt_sigprocmask(SIG_BLOCK, NULL, &blocked, 8)
	MOVD ZR, R0
	MOVD ZR, R1
	MOVD $·blocked(SB), R2
	MOVD $8, R3
	MOVD $135, R8
	SVC

	MOVD ZR, R19
descriptor:
	// fcntl(descriptor, F_GETFD)
	MOVD R19, R0
	MOVD $1, R1
	MOVD ZR, R2
	MOVD $25, R8
	SVC
	CMN  $9, R0 // EBADF
	BNE  open
	MOVD $1, R6
	LSL  R19, R6, R6
	MOVD ·closed(SB), R7
	ORR  R6, R7, R7
	MOVD R7, ·closed(SB)
open:
	ADD  $1, R19, R19
	CMP  $3, R19
	BLT  descriptor

	MOVD $1, R6
	MOVD R6, ·recorded(SB)
	B    _rt0_arm64_linux(SB)
