package controllers

import (
	"context"
	"encoding/json"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// interleavedClient is the API server, as far as the reconciler needs it. What it
// reads has just been written.
type interleavedClient struct {
	client.Client // for what is not called
	*interleaving
	before func()
}

// interleavedReader is the client whose reads are requests, before which something
// may happen.
type interleavedReader struct{ *interleavedClient }

// Get implements client.Reader.
func (r *interleavedReader) Get(ctx context.Context, key client.ObjectKey, into client.Object, options ...client.GetOption) error {
	r.before()
	return r.interleavedClient.Get(ctx, key, into, options...)
}

// List implements client.Reader.
func (*interleavedReader) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.ErrUnsupported
}

// Get implements client.Reader.
func (c *interleavedClient) Get(_ context.Context, _ client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	switch into := into.(type) {
	case *corev1.PersistentVolumeClaim:
		c.claim.DeepCopyInto(into)
	case *corev1.PersistentVolume:
		c.volume.DeepCopyInto(into)
	}
	return nil
}

// Patch implements client.Writer, for what is written into volumes.
func (c *interleavedClient) Patch(_ context.Context, o client.Object, patch client.Patch, _ ...client.PatchOption) error {
	var written struct {
		Metadata metav1.ObjectMeta
		Spec     struct{ Capacity corev1.ResourceList }
	}
	if err := c.decode(o, patch, &written); err != nil {
		return err
	}
	if written.Metadata.ResourceVersion != c.volume.ResourceVersion {
		return conflict("persistentvolumes")
	}
	c.volume.Spec.Capacity = written.Spec.Capacity
	next(&c.volume.ObjectMeta)
	c.check()
	c.volume.DeepCopyInto(o.(*corev1.PersistentVolume))
	return nil
}

// Status implements client.Client.
func (c *interleavedClient) Status() client.SubResourceWriter {
	return &interleavedStatus{interleavedClient: c}
}

type interleavedStatus struct {
	client.SubResourceWriter // for what is not called
	*interleavedClient
}

// Patch implements client.SubResourceWriter, for the status of claims.
func (s *interleavedStatus) Patch(_ context.Context, o client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	var written struct {
		Metadata metav1.ObjectMeta
		Status   struct {
			Capacity, AllocatedResources corev1.ResourceList
			AllocatedResourceStatuses    map[corev1.ResourceName]*corev1.ClaimResourceStatus
			Conditions                   []map[string]any
		}
	}
	if err := s.decode(o, patch, &written); err != nil {
		return err
	}
	if written.Metadata.ResourceVersion != s.claim.ResourceVersion {
		return conflict("persistentvolumeclaims")
	}
	s.edit(func(c *corev1.PersistentVolumeClaim) {
		if capacity := written.Status.Capacity; capacity != nil {
			c.Status.Capacity = capacity
		}
		for _, condition := range written.Status.Conditions {
			c.Status.Conditions = nil
			if condition["$patch"] != "delete" {
				c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimControllerResizeError}}
			}
		}
		if !s.recovers {
			return
		}
		if allocated := written.Status.AllocatedResources; allocated != nil {
			c.Status.AllocatedResources = allocated
		}
		for name, status := range written.Status.AllocatedResourceStatuses {
			c.Status.AllocatedResourceStatuses = nil
			if status != nil {
				c.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{name: *status}
			}
		}
	})
	s.check()
	s.claim.DeepCopyInto(o.(*corev1.PersistentVolumeClaim))
	return nil
}

func (c *interleavedClient) decode(o client.Object, patch client.Patch, into any) error {
	c.before()
	text, err := patch.Data(o)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func conflict(resource string) error {
	return apierrors.NewConflict(schema.GroupResource{Resource: resource}, "it", errors.New("it has changed"))
}
