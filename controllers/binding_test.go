package controllers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-storage/berth/test/controlplane"
)

// withoutControllerManager stops kube-controller-manager until the function it
// returns is called, or the test ends. The test must not be parallel.
func withoutControllerManager(t *testing.T) (resume func()) {
	t.Helper()
	p := sharedControlPlane(t).ControllerManager()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() {
		if err := p.Start(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(resume)
	return resume
}

// impatient has the binder wait 50 ms for kube-controller-manager to bind, and 5
// s for it to show that it lives.
func impatient(o *berthOptions) { o.bindGrace, o.silence = 50*time.Millisecond, 5*time.Second }

func TestBinderBindsWhileControllerManagerIsDown(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	withoutControllerManager(t)
	s.class()
	b := s.run(driver, impatient)
	const claims = 30 // more than are taken for next in line
	start := time.Now()
	var all []*corev1.PersistentVolumeClaim
	for i := range claims {
		all = append(all, s.claim(fmt.Sprintf("data-%d", i)))
	}
	for _, claim := range all {
		s.expectBound(claim)
	}
	if took, atMost := time.Since(start), 30*time.Second; took > atMost {
		t.Errorf("%d claims were bound after %s, want less than %s", claims, took, atMost)
	}
	s.Eventually(func() float64 { return b.metric("berth_bind_duration_seconds") }).Should(gomega.Equal(float64(claims)))
}

func TestLostClaimIsRepairedAndCounted(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	b := s.run(driver, impatient)
	claim := s.claim("data")
	volume := s.expectBound(claim)
	withoutControllerManager(t) // which would repair it at its next resync
	condition := corev1.PersistentVolumeClaimCondition{Type: "example.com/Kept", Status: corev1.ConditionTrue}
	before := claim.DeepCopy()
	claim.Status.Phase = corev1.ClaimLost
	claim.Status.Conditions = append(claim.Status.Conditions, condition)
	s.ok(s.client.Status().Patch(t.Context(), claim, client.MergeFrom(before)))
	s.Expect(s.expectBound(claim).Name).To(gomega.Equal(volume.Name))
	s.Eventually(func() float64 { return b.metric("berth_claims_lost_repaired_total") }).Should(gomega.Equal(1.0))
	var types []corev1.PersistentVolumeClaimConditionType
	for _, c := range claim.Status.Conditions {
		types = append(types, c.Type)
	}
	s.Expect(types).To(gomega.ContainElement(condition.Type), "others' conditions stay")
}

func TestHalfDoneBindIsFinished(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	withoutControllerManager(t)
	for step, begin := range map[string]func(*corev1.PersistentVolume, *corev1.PersistentVolumeClaim){
		"the volume's phase is written": func(v *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim) {
			s.setPhase(v, `{"status":{"phase":"Bound"}}`)
		},
		"the claim's volume is written": func(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
			s.setPhase(v, `{"status":{"phase":"Bound"}}`)
			patch(s, c, completeBind(v.Name))
		},
		"the claim's phase is written, the volume's is not": func(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) {
			patch(s, c, completeBind(v.Name))
			s.setPhase(c, `{"status":{"phase":"Bound"}}`)
		},
	} {
		t.Run(step, func(t *testing.T) {
			first := s.run(driver, func(o *berthOptions) { o.noBinder = true })
			claim := s.claim(fmt.Sprintf("data-%d", len(driver.Stored())))
			volume := &corev1.PersistentVolume{}
			volume.Name = "pvc-" + string(claim.UID)
			s.Eventually(func() bool { return s.get(volume) }).Should(gomega.BeTrue())
			first.stop()
			begin(volume, claim)
			second := s.run(driver, impatient)
			s.Expect(s.expectBound(claim).Name).To(gomega.Equal(volume.Name))
			second.stop()
		})
	}
}

// completeBind changes a claim as binding it to volume does.
func completeBind(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		annotate("pv.kubernetes.io/bind-completed", "yes")(c)
		c.Spec.VolumeName = volume
	}
}

func (s *scope) setPhase(o client.Object, status string) {
	s.t.Helper()
	s.ok(s.client.Status().Patch(s.t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(status))))
}

const (
	binderAccount     = "system:serviceaccount:kube-system:persistent-volume-binder"
	protectionAccount = "system:serviceaccount:kube-system:pvc-protection-controller"
)

// TestPairsStayBoundAcrossRestartsOfControllerManager: what Berth binds is what
// kube-controller-manager would have written, so it has nothing to add, and never
// takes a pair for anything but bound, however often it begins anew.
func TestPairsStayBoundAcrossRestartsOfControllerManager(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver, impatient)
	cp := sharedControlPlane(t)
	s.ok(cp.ControllerManager().Kill()) // Berth binds all of them
	const claims = 25
	var all []*corev1.PersistentVolumeClaim
	for i := range claims {
		all = append(all, s.claim(fmt.Sprintf("data-%d", i)))
	}
	names := map[string]bool{}
	for _, claim := range all {
		names[s.expectBound(claim).Name] = true
		names[claim.Name] = true
	}
	flaws := s.watchPhases(all)

	s.ok(cp.ControllerManager().Start(t.Context()))
	s.ok(cp.ControllerManager().Restart(t.Context()))
	s.ok(cp.ControllerManager().Kill())
	s.ok(cp.ControllerManager().Start(t.Context()))
	// A claim made now is bound only after kube-controller-manager has been through
	// its queue of older ones.
	last := s.claim("last")
	s.expectBound(last)
	s.Consistently(flaws, quiet).Should(gomega.BeEmpty())

	actors := s.writes(func(object string) bool { return names[object] })
	for _, line := range actors.lines() {
		t.Log(line)
	}
	for _, write := range actors {
		switch write.actor {
		case berthUser, "admin":
		case binderAccount:
			if extra := slices.DeleteFunc(slices.Clone(write.fields), isTriggerAnnotation); len(extra) > 0 {
				t.Errorf("kube-controller-manager's binder changed %q of %s by %s", extra, write.object, write.request)
			}
		case protectionAccount:
			if extra := slices.DeleteFunc(slices.Clone(write.fields), isUnusedCondition); len(extra) > 0 {
				t.Errorf("kube-controller-manager's protection changed %q of %s by %s", extra, write.object, write.request)
			}
		default:
			t.Errorf("%s wrote to %s by %s: %q", write.actor, write.object, write.request, write.fields)
		}
	}
}

// TestWritesToAClaimAndItsVolume prints, with -v, who writes what in a life with
// kube-controller-manager at work.
func TestWritesToAClaimAndItsVolume(t *testing.T) {
	s, driver := newScope(t), newMemoryDriver()
	s.class()
	s.run(driver)
	names := map[string]bool{}
	var all []*corev1.PersistentVolumeClaim
	for i := range 20 {
		all = append(all, s.claim(fmt.Sprintf("data-%d", i)))
	}
	for _, claim := range all {
		names[claim.Name] = true
		names[s.expectBound(claim).Name] = true
	}
	for _, claim := range all {
		s.delete(claim)
	}
	s.expectNothingLeft(driver)
	for _, line := range s.writes(func(object string) bool { return names[object] }).lines() {
		t.Log(line)
	}
}

func isTriggerAnnotation(field string) bool {
	return field == "metadata.annotations.volume.kubernetes.io/storage-provisioner" ||
		field == "metadata.annotations.volume.beta.kubernetes.io/storage-provisioner"
}

func isUnusedCondition(field string) bool { return strings.HasPrefix(field, "status.conditions") }

// watchPhases returns a function that tells of every moment since the call at
// which one of claims, or its volume, was anything but Bound.
func (s *scope) watchPhases(claims []*corev1.PersistentVolumeClaim) func() []string {
	s.t.Helper()
	c, err := client.NewWithWatch(sharedControlPlane(s.t).Config(), client.Options{})
	s.ok(err)
	flaws := make(chan string, 1000)
	inspect := func(o client.Object) {
		switch o := o.(type) {
		case *corev1.PersistentVolumeClaim:
			if slices.ContainsFunc(claims, func(c *corev1.PersistentVolumeClaim) bool { return c.UID == o.UID }) && o.Status.Phase != corev1.ClaimBound {
				flaws <- fmt.Sprintf("claim %s was %s", o.Name, o.Status.Phase)
			}
		case *corev1.PersistentVolume:
			if slices.ContainsFunc(claims, func(c *corev1.PersistentVolumeClaim) bool { return c.Spec.VolumeName == o.Name }) && o.Status.Phase != corev1.VolumeBound {
				flaws <- fmt.Sprintf("volume %s was %s", o.Name, o.Status.Phase)
			}
		}
	}
	for _, list := range []client.ObjectList{&corev1.PersistentVolumeClaimList{}, &corev1.PersistentVolumeList{}} {
		w, err := c.Watch(s.t.Context(), list)
		s.ok(err)
		s.t.Cleanup(w.Stop)
		go func() {
			for event := range w.ResultChan() {
				if o, ok := event.Object.(client.Object); ok && event.Type != watch.Bookmark {
					inspect(o)
				}
			}
		}()
	}
	var seen []string
	return func() []string {
		for {
			select {
			case flaw := <-flaws:
				seen = append(seen, flaw)
			default:
				return seen
			}
		}
	}
}

// write is a write that the audit log holds, and the fields it changed.
type write struct {
	actor, request, object string
	fields                 []string
}

type writes []write

// lines sums up who wrote what how often.
func (all writes) lines() []string {
	counts := map[string]int{}
	for _, w := range all {
		counts[fmt.Sprintf("%s: %s: %s", w.actor, w.request, strings.Join(w.fields, ", "))]++
	}
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%4d × %s", counts[key], key))
	}
	return lines
}

// writes returns the writes, those that failed too, to the scope's claims and to volumes, of
// those objects that of accepts.
func (s *scope) writes(of func(object string) bool) writes {
	s.t.Helper()
	last := map[string]map[string]string{}
	var all writes
	for event, err := range controlplane.ReadAudit(sharedControlPlane(s.t).AuditLogPath()) {
		s.ok(err)
		ref := event.ObjectRef
		if ref == nil || event.ResponseStatus == nil || event.ResponseObject == nil || ref.Namespace != "" && ref.Namespace != s.name {
			continue
		}
		var object map[string]any
		s.ok(json.Unmarshal(event.ResponseObject.Raw, &object))
		meta, _ := object["metadata"].(map[string]any)
		name, _ := meta["name"].(string)
		if name == "" {
			name = ref.Name // the response tells of a failure
		}
		if !of(name) {
			continue
		}
		w := write{actor: event.User.Username, object: name, request: event.Verb + " " + strings.TrimSuffix(ref.Resource+"/"+ref.Subresource, "/")}
		if event.ResponseStatus.Code >= 300 {
			w.request += fmt.Sprintf(" (%d %s)", event.ResponseStatus.Code, event.ResponseStatus.Reason)
			all = append(all, w)
			continue
		}
		fields := map[string]string{}
		flatten("", object, fields)
		key := ref.Resource + "/" + name
		if event.Verb != "create" {
			w.fields = changed(last[key], fields)
		}
		last[key] = fields
		all = append(all, w)
	}
	return all
}

// flatten lists the leaves of value by path, without what changes with every
// write.
func flatten(path string, value any, into map[string]string) {
	switch path {
	case "metadata.managedFields", "metadata.resourceVersion", "metadata.generation":
		return
	}
	switch value := value.(type) {
	case map[string]any:
		for key, v := range value {
			flatten(strings.TrimPrefix(path+"."+key, "."), v, into)
		}
	default:
		text, _ := json.Marshal(value)
		into[path] = string(text)
	}
}

func changed(before, after map[string]string) []string {
	var fields []string
	for path, value := range after {
		if old, ok := before[path]; !ok || old != value {
			fields = append(fields, path)
		}
	}
	for path := range before {
		if _, ok := after[path]; !ok {
			fields = append(fields, "-"+path)
		}
	}
	slices.Sort(fields)
	return fields
}
