package request_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-storage/berth/provisioner"
	"github.com/berth-storage/berth/provisioner/request"
)

func TestSizesThatCannotBeHad(t *testing.T) {
	for size, want := range map[string]string{
		"0":                    "more than nothing",
		"-1Gi":                 "more than nothing",
		"12345678901234567890": "less than 8Ei", // wraps around in 64 bits
		"1":                    "",
		"7Ei":                  "",
	} {
		claim := &corev1.PersistentVolumeClaim{}
		claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
		err := request.CheckClaim(claim)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", size, err)
			}
			continue
		}
		if !provisioner.IsInfeasible(err) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "spec.resources.requests.storage") {
			t.Errorf("%s: %v, want it refused with the field and %q", size, err, want)
		}
	}
}
