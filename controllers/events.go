package controllers

import (
	"fmt"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"github.com/berth-storage/berth/provisioner"
)

// Reasons of the events Berth writes. They are those of
// sig-storage-lib-external-provisioner, along with the messages, and of
// external-resizer (pkg/util/events.go), since people search for them.
const (
	reasonProvisioning          = "Provisioning"
	reasonProvisioningSucceeded = "ProvisioningSucceeded"
	reasonProvisioningFailed    = "ProvisioningFailed"
	reasonVolumeFailedDelete    = "VolumeFailedDelete"
	reasonNodeLost              = "NodeLost"
	reasonPoolShared            = "PoolShared"
	reasonPoolMoved             = "PoolMoved"

	reasonVolumeResizeSuccessful = "VolumeResizeSuccessful"
	reasonVolumeResizeFailed     = "VolumeResizeFailed"
)

// Actions of the events Berth writes, as the events API wants one.
const (
	actionProvision = "Provision"
	actionReclaim   = "Reclaim"
	actionExpand    = "Expand"
)

// maxEventNote is how many bytes the API server takes in an event's note
// (kubernetes pkg/apis/core/validation/events.go, NoteLengthLimit).
const maxEventNote = 1024

func warn(recorder events.EventRecorder, about runtime.Object, reason, action, format string, args ...any) {
	emit(recorder, about, corev1.EventTypeWarning, reason, action, format, args...)
}

// warnOf is warn about an error of a driver, unless it is too early to say that
// something is wrong.
func warnOf(err error, recorder events.EventRecorder, about runtime.Object, reason, action, format string, args ...any) {
	if !provisioner.IsPremature(err) {
		warn(recorder, about, reason, action, format, args...)
	}
}

func tell(recorder events.EventRecorder, about runtime.Object, reason, action, format string, args ...any) {
	emit(recorder, about, corev1.EventTypeNormal, reason, action, format, args...)
}

func emit(recorder events.EventRecorder, about runtime.Object, eventType, reason, action, format string, args ...any) {
	recorder.Eventf(about, nil, eventType, reason, action, "%s", clip(fmt.Sprintf(format, args...), maxEventNote))
}

// clip shortens s to at most limit bytes, at the border of a character.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const ellipsis = "…"
	s = s[:limit-len(ellipsis)]
	for len(s) > 0 {
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size > 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + ellipsis
}
