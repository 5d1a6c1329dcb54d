package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

const (
	// bareProvisioner is none of Berth's, so that no Berth touches its volumes.
	bareProvisioner = "bench.berth.storage/bare"
	// labelClass marks the volumes of the bare client, which nobody reclaims.
	labelClass = "bench.berth.storage/class"
)

// bareClient makes the four writes that a bind needs, with no logic: no
// storage, no event, no look at other volumes, no regard for
// kube-controller-manager.
type bareClient struct {
	client kubernetes.Interface
	class  string
}

// runBareClient binds every claim of class as soon as it is seen, until ctx
// ends.
func runBareClient(ctx context.Context, config *rest.Config, class string) error {
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	b := &bareClient{client: client, class: class}
	storageClass, err := client.StorageV1().StorageClasses().Get(ctx, b.class, metav1.GetOptions{})
	if err != nil {
		return err
	}
	waits := *storageClass.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	claims := make(chan *corev1.PersistentVolumeClaim)
	due := func(o any) bool {
		claim, ok := o.(*corev1.PersistentVolumeClaim)
		return ok && claim.Spec.VolumeName == "" && volumehelpers.GetPersistentVolumeClaimClass(claim) == b.class &&
			(!waits || claim.Annotations[volumehelpers.AnnSelectedNode] != "")
	}
	send := func(o any) {
		if claim, ok := o.(*corev1.PersistentVolumeClaim); ok {
			select {
			case claims <- claim:
			case <-ctx.Done():
			}
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	_, err = factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if due(o) {
				send(o)
			}
		},
		UpdateFunc: func(before, after any) {
			if !due(before) && due(after) {
				send(after)
			}
		},
	})
	if err != nil {
		return err
	}
	for range workers {
		go b.work(ctx, claims)
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}

func (b *bareClient) work(ctx context.Context, claims <-chan *corev1.PersistentVolumeClaim) {
	for {
		select {
		case claim := <-claims:
			if err := b.bind(ctx, claim); err != nil {
				fmt.Fprintf(os.Stderr, "bind %s/%s: %v\n", claim.Namespace, claim.Name, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (b *bareClient) bind(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	volumes, claims := b.client.CoreV1().PersistentVolumes(), b.client.CoreV1().PersistentVolumeClaims(claim.Namespace)
	volume, err := volumes.Create(ctx, bareVolume(claim, b.class), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	writes := []struct {
		patch any
		send  func([]byte) error
	}{
		{map[string]any{"status": corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}, func(patch []byte) error {
			_, err := volumes.Patch(ctx, volume.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			return err
		}},
		{bindPatch(volume.Name), func(patch []byte) error {
			_, err := claims.Patch(ctx, claim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		}},
		{map[string]any{"status": corev1.PersistentVolumeClaimStatus{
			Phase:       corev1.ClaimBound,
			AccessModes: claim.Spec.AccessModes,
			Capacity:    capacityOf(claim),
		}}, func(patch []byte) error {
			_, err := claims.Patch(ctx, claim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			return err
		}},
	}
	for _, w := range writes {
		patch, err := json.Marshal(w.patch)
		if err != nil {
			return err
		}
		// The API server gives up on a patch when others keep writing.
		if err := retry.OnError(retry.DefaultBackoff, apierrors.IsConflict, func() error { return w.send(patch) }); err != nil {
			return err
		}
	}
	return nil
}

func bindPatch(volume string) any {
	return map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{
			volumehelpers.AnnBindCompleted:     "yes",
			volumehelpers.AnnBoundByController: "yes",
		}},
		"spec": map[string]any{"volumeName": volume},
	}
}

// bareVolume looks like a volume of the driver.
func bareVolume(claim *corev1.PersistentVolumeClaim, class string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "pvc-" + string(claim.UID),
			Labels:      map[string]string{labelClass: class},
			Annotations: map[string]string{volumehelpers.AnnDynamicallyProvisioned: bareProvisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      capacityOf(claim),
			AccessModes:                   claim.Spec.AccessModes,
			StorageClassName:              class,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/" + claim.Name}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{nodeName},
				}},
			}}}},
		},
	}
}
