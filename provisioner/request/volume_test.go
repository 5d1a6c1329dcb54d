package request_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/request"
)

func TestOnlyRightsThatDifferAreSaid(t *testing.T) {
	opts := controller.ProvisionOptions{StorageClass: &storagev1.StorageClass{}, PVC: &corev1.PersistentVolumeClaim{}, PVName: "pvc-1"}
	for rights, want := range map[string]string{
		"":                          "",
		"mode 0777 instead of 0750": "its directory has other rights than its class asks for: mode 0777 instead of 0750",
	} {
		volume := request.Describe("driver", opts, directory.Marker{Path: "vol", Rights: rights}, corev1.PersistentVolumeSource{})
		if _, there := volume.Annotations[request.AnnRights]; there != (rights != "") {
			t.Errorf("annotations %v", volume.Annotations)
		}
		if got := request.NoticeRights(volume); got != want {
			t.Errorf("NoticeRights = %q, want %q", got, want)
		}
	}
}
