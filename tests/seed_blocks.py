"""The pins of the seed's blocks: graphs made there must find them here."""

from __future__ import annotations

# Input pins -> output pins, without `error`.
PINS = {
    "AddToDictionaryBlock": "dictionary key value entries -> updated_dictionary",
    "AddToListBlock": "list entry entries position -> updated_list",
    "AgentDateInputBlock": "name value title description advanced secret -> result",
    "AgentDropdownInputBlock": "name value title description advanced secret options -> result",
    "AgentExecutorBlock": (
        "user_id graph_id graph_version agent_name inputs input_schema output_schema nodes_input_masks ->"
    ),
    "AgentFileInputBlock": "name value title description advanced secret base_64 -> result",
    "AgentGoogleDriveFileInputBlock": (
        "name value title description advanced secret allowed_views allow_folder_selection -> result"
    ),
    "AgentInputBlock": "name value title description advanced secret -> result",
    "AgentLongTextInputBlock": "name value title description advanced secret -> result",
    "AgentNumberInputBlock": "name value title description advanced secret -> result",
    "AgentOutputBlock": "value name title description format escape_html advanced secret -> output name",
    "AgentShortTextInputBlock": "name value title description advanced secret -> result",
    "AgentTableInputBlock": "name value title description advanced secret column_headers -> result",
    "AgentTimeInputBlock": "name value title description advanced secret -> result",
    "AgentToggleInputBlock": "name value title description advanced secret -> result",
    "CalculatorBlock": "operation a b round_result -> result",
    "CodeExtractionBlock": (
        "text -> html css javascript python sql java cpp csharp json_code bash php ruby yaml "
        "markdown typescript xml remaining_text"
    ),
    "CombineTextsBlock": "input delimiter -> output",
    "ConcatenateListsBlock": "lists deduplicate remove_none -> concatenated_list length",
    "ConditionBlock": "value1 operator value2 yes_value no_value -> result yes_output no_output",
    "CountItemsBlock": "collection -> count",
    "CountdownTimerBlock": "input_message seconds minutes hours days repeat -> output_message",
    "CreateDictionaryBlock": "values -> dictionary",
    "CreateListBlock": "values max_size max_tokens -> list",
    "DataSamplingBlock": (
        "data sample_size sampling_method accumulate random_seed stratify_key weight_key "
        "cluster_key -> sampled_data sample_indices"
    ),
    "DictionaryIsEmptyBlock": "dictionary -> is_empty",
    "ExtractTextInformationBlock": (
        "text pattern group case_sensitive dot_all find_all -> positive negative matched_results matched_count"
    ),
    "FileReadBlock": "file_input delimiter size_limit row_limit skip_size skip_rows -> content",
    "FileStoreBlock": "file_in base_64 -> file_out",
    "FillTextTemplateBlock": "values format escape_html -> output",
    "FindInDictionaryBlock": "input key -> output missing",
    "FindInListBlock": "list value -> index found not_found_value",
    "FlattenListBlock": "nested_list max_depth -> flattened_list length original_depth",
    "GenericWebhookTriggerBlock": "payload constants -> payload constants",
    "GetCurrentDateAndTimeBlock": "trigger format_type -> date_time",
    "GetCurrentDateBlock": "trigger offset format_type -> date",
    "GetCurrentTimeBlock": "trigger format_type -> time",
    "GetListItemBlock": "list index -> item",
    "HumanInTheLoopBlock": "data name editable -> approved_data rejected_data review_message",
    "IfInputMatchesBlock": "input value yes_value no_value -> result yes_output no_output",
    "InterleaveListsBlock": "lists -> interleaved_list length",
    "ListDifferenceBlock": "list_a list_b symmetric -> difference length",
    "ListIntersectionBlock": "list_a list_b -> intersection length",
    "ListIsEmptyBlock": "list -> is_empty",
    "MatchTextPatternBlock": "text match data case_sensitive dot_all -> positive negative",
    "NoteBlock": "text -> output",
    "PersistInformationBlock": "key value scope -> value",
    "PrintToConsoleBlock": "text -> output status",
    "ReadSpreadsheetBlock": (
        "contents file_input delimiter quotechar escapechar has_header skip_rows strip skip_columns "
        "produce_singular_result -> row rows"
    ),
    "RemoveFromDictionaryBlock": "dictionary key return_value -> updated_dictionary removed_value",
    "RemoveFromListBlock": "list value index return_item -> updated_list removed_item",
    "ReplaceDictionaryValueBlock": "dictionary key value -> updated_dictionary old_value",
    "ReplaceListItemBlock": "list index value -> updated_list old_item",
    "RetrieveInformationBlock": "key scope default_value -> value",
    "ReverseListOrderBlock": "input_list -> reversed_list",
    "StepThroughItemsBlock": "items items_object items_str -> item key",
    "StoreValueBlock": "input data -> output",
    "TextDecoderBlock": "text -> decoded_text",
    "TextEncoderBlock": "text -> encoded_text",
    "TextReplaceBlock": "text old new -> output",
    "TextSplitBlock": "text delimiter strip -> texts",
    "UniversalTypeConverterBlock": "value type -> value",
    "WordCharacterCountBlock": "text -> word_count character_count",
    "XMLParserBlock": "input_xml -> parsed_xml",
    "ZipListsBlock": "lists pad_to_longest fill_value -> zipped_list length",
}
