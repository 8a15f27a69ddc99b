package rpc

import (
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

// PolicydAllow is who may call what at policyd.
var PolicydAllow = Allow{
	policyv1.PolicyFeed_Subscribe_FullMethodName:    {RoleWorker, RoleKeymgrd},
	policyv1.PolicyService_Validate_FullMethodName:  {RoleOperator},
	policyv1.PolicyService_Apply_FullMethodName:     {RoleOperator},
	policyv1.PolicyService_Get_FullMethodName:       {RoleOperator},
	policyv1.PolicyService_Effective_FullMethodName: {RoleOperator},
	policyv1.PolicyService_Explain_FullMethodName:   {RoleOperator},
	policyv1.PolicyService_Status_FullMethodName:    {RoleOperator},
}

// KeymgrdAllow is who may call what at keymgrd.
var KeymgrdAllow = Allow{
	keymgrv1.WorkerLink_Attach_FullMethodName:                 {RoleWorker},
	keymgrv1.KeyManagerService_ListSas_FullMethodName:         {RoleOperator},
	keymgrv1.KeyManagerService_ListWorkers_FullMethodName:     {RoleOperator},
	keymgrv1.KeyManagerService_Initiate_FullMethodName:        {RoleOperator},
	keymgrv1.KeyManagerService_Rekey_FullMethodName:           {RoleOperator},
	keymgrv1.KeyManagerService_Terminate_FullMethodName:       {RoleOperator},
	keymgrv1.KeyManagerService_Watch_FullMethodName:           {RoleOperator},
	keymgrv1.KeyManagerService_ExplainFailures_FullMethodName: {RoleOperator},
	keymgrv1.KeyManagerService_Trace_FullMethodName:           {RoleOperator},
}

// WorkerAllow is who may call what at workerd: local processes only.
var WorkerAllow = Allow{}
